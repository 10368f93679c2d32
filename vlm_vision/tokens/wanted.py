"""Settings of a token store: the tokens of each image, and their number format."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from vlm_vision.nn.output import Tap

Part = Literal["patch_tokens", "cls_token", "register_tokens", "pooled"]
StoredDtype = Literal["float32", "float16", "bfloat16", "int8"]
PARTS: tuple[Part, ...] = get_args(Part)
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(StoredDtype)}
"""Name -> dtype of tokens on disk; int8 comes with a float32 scale for each token."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Settings of a store: two runs write equal stores only where all of them agree.

    Raises:
        ValueError: a setting of another kind, or a layer that occurs twice.
    """

    layers: tuple[int, ...] = (-1,)
    """Blocks whose tokens are stored, in one forward; -1 is the last. The first is the one that readers get by default."""
    norm: bool = True
    """Apply the final norm to the tokens of every layer."""
    parts: tuple[Part, ...] = ()
    """Tokens and vectors to store; empty for all that the encoder has, and the pooled vector where -1 is among the layers."""
    dtype: StoredDtype = "float32"
    """Number format on disk."""
    pool: int = 1
    """Side of the squares of patch tokens that are averaged to one; 1 for none."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the forward."""
    batch_size: int = 16
    """Images in one forward."""
    shard_mb: int = 128
    """Size of a shard in units of 2^20 bytes, from which the number of its images follows."""
    shard_images: int = 0
    """Images of a shard; 0 for as many as `shard_mb` holds, at most 1,024."""

    def __post_init__(self) -> None:
        for name in ("layers", "parts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers are {list(self.layers)}: expected one or more, each once")
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise ValueError(f"a store has no part {unknown[0]!r}: expected some of {', '.join(PARTS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"precision is {self.precision!r}: expected float32, bfloat16 or float16")
        for name, least in (("pool", 1), ("batch_size", 1), ("shard_mb", 1), ("shard_images", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least {least}")

    @property
    def tap(self) -> Tap:
        """One tap of all layers, whose tokens lie side by side in the channels."""
        return Tap(self.layers[0], self.norm, self.layers[1:])

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
