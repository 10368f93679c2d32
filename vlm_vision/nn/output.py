"""Output of an encoder, `VisionOutput`, and the block that it is read from, `Tap`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vlm_vision.nn.checks import is_whole
from vlm_vision.nn.rope import Grid


@dataclass(frozen=True)
class Tap:
    """Which tokens to read: the output of block `layer` (-1 is the last), with the family's final norm or without."""

    layer: int = -1
    norm: bool = True
    more: tuple[int, ...] = ()
    """More blocks, whose tokens follow those of `layer` in the channels, in this order."""

    def __post_init__(self):
        if not is_whole(self.layer) or not isinstance(self.norm, bool):
            raise ValueError(
                f"Tap takes a whole number and True or False, got layer={self.layer!r}, norm={self.norm!r}"
            )
        if not isinstance(self.more, list | tuple) or not all(map(is_whole, self.more)):
            raise ValueError(f"Tap takes whole numbers of blocks in more, got {self.more!r}")
        object.__setattr__(self, "more", tuple(self.more))

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Indices of the tapped blocks, 0-based, in the order of their channels. Raises ValueError if there is no such block."""
        layers = (self.layer, *self.more)
        for layer in layers:
            if not -depth <= layer < depth:
                raise ValueError(
                    f"Tap(layer={layer}) is outside this encoder of {depth} blocks: use {-depth} to {depth - 1}"
                )
        return tuple(layer % depth for layer in layers)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types, `more` only where there are some."""
        return {"layer": self.layer, "norm": self.norm} | ({"more": list(self.more)} if self.more else {})

    def block(self, depth: int) -> int:
        """Index of the last tapped block, 0-based. Raises ValueError if there is no such block."""
        return max(self.blocks(depth))


@dataclass
class VisionOutput:
    """Output of an encoder, by name. All tokens come from the same tap."""

    patch_tokens: Tensor
    """(B, N, D), N == frames * h * w, frame by frame and row-major: patches only."""
    grid: Grid
    """(h, w)"""
    frames: int = 1
    """Frames of tokens: 1 for an image."""
    cls_token: Tensor | None = None
    """(B, D)"""
    register_tokens: Tensor | None = None
    """(B, R, D)"""
    pooled: Tensor | None = None
    """(B, E), the family's own vector for the image; only from the last block."""
    logits: Tensor | None = None
    """(B, classes); only from the last block of a model with a classification head."""
    kept: Tensor | None = None
    """(B, K) indices of the patches that were encoded, where some were dropped: then patch_tokens is (B, K, D)."""
    deepstack: tuple[Tensor, ...] = ()
    """(B, M, E) each: deep features after their own mergers, for towers with DeepStack; of the blocks up to the tap."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "VisionOutput":
        """A copy whose tensors, deep features included, are those that `change` returns for them."""
        changed = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **changed, deepstack=tuple(map(change, self.deepstack)))
