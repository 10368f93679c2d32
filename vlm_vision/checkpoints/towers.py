"""`Tower`, the result of every reader of a foreign format, and its model."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vlm_vision.checkpoints import keys
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.keys import Key, Spellings
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.output import Tap
from vlm_vision.nn.position import sincos_2d
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.preprocess.spec import Preprocess

MALFORMED_ERRORS = (TypeError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError, StopIteration)
"""Errors that Python raises where a configuration holds a value of the wrong kind."""


class WeightSource(Protocol):
    """Stored tensors by name, read one at a time."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def get(self, name: str, *, keep: bool = True) -> Tensor: ...


def _usual(name: str, spellings: Spellings) -> str:
    for theirs, usual in spellings:
        name = re.sub(theirs, usual, name)
    return name


class TowerWeights:
    """The tensors of `weights` under a prefix, by their names without it. `stored` maps these to the names in `source`.

    Args:
        prefix: None for the extra names alone.
        extra: names outside the prefix that belong to the part as well.
        ignored: whether a name, without prefix, is documented to have no effect on the model. Tensors without
            elements (the registers of a model that has none) are ignored as well.
        spellings: as `Family.spellings`.

    Raises:
        ValueError: two weights under two spellings of one name.
    """

    def __init__(
        self,
        weights: WeightSource,
        prefix: str | None = "",
        *,
        extra: Iterable[str] = (),
        ignored: Callable[[str], bool] = lambda name: False,
        spellings: Spellings = (),
    ):
        own = [] if prefix is None else [name for name in weights.shapes if name.startswith(prefix)]
        pairs = [(_usual(name.removeprefix(prefix or ""), spellings), name) for name in own]
        stored: dict[str, str] = {}
        for usual, name in [*pairs, *((name, name) for name in extra if name in weights.shapes)]:
            if stored.setdefault(usual, name) != name:
                raise ValueError(f"{name} and {stored[usual]} are one weight under two names: remove the wrong one")
        self.source = weights
        self.stored = {
            name: theirs for name, theirs in stored.items() if not ignored(name) and 0 not in weights.shapes[theirs]
        }
        self.shapes = {name: weights.shapes[theirs] for name, theirs in self.stored.items()}

    def get(self, name: str, *, keep: bool = True) -> Tensor:
        return self.source.get(self.stored[name], keep=keep)


def count(names: Iterable[str], pattern: str) -> int:
    """Number of different indices that the pattern matches at the beginning of names."""
    return len({found[1] for name in names if (found := re.match(pattern, name))})


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Facts that the user states where a checkpoint does not."""

    num_heads: int | None = None
    architecture: str | None = None
    """timm's name of the architecture."""
    format: str | None = None
    """Format to read, of two in one folder."""
    part: str | None = None
    """Prefix of the tower's weights in a file that holds several."""
    image_size: tuple[int, int] | None = None
    """(height, width) in pixels that is asked for, which settles a position table that is not square."""
    pixels: str = "pil"
    """Image backend of transformers whose pixels the preprocessing makes."""


@dataclass(frozen=True, kw_only=True)
class Tower:
    """One vision tower in a checkpoint: what to build, and its weights."""

    source: str
    """Name of the tower in an error."""
    format: str
    """Name of the `Format`."""
    family: str
    """Name of the family in `vlm_vision.checkpoints.families`."""
    reference: str
    """Library whose outputs the format stands for."""
    config: ViTConfig
    keys: list[Key]
    weights: WeightSource
    preprocess: Preprocess
    tap: Tap = Tap()


@dataclass(frozen=True)
class Format:
    """One way in which towers are stored; `vlm_vision.checkpoints.sniff` has the list of all."""

    name: str
    families: tuple[str, ...]
    """Families that are read from it."""
    recognises: Callable[[Checkpoint], bool]
    """True for a checkpoint of this format; decides by names of files and weights and by config.json, and reads no weight."""
    read: Callable[[Checkpoint, Hints], list[Tower]]
    """Function from a checkpoint of this format to its towers, in channel order."""


def only(checkpoint: Checkpoint, hints: Hints, *read: str) -> None:
    """Raise ValueError for a hint that the format of a checkpoint does not read, because it states that itself."""
    for name in ("part", "architecture", "num_heads"):
        if name not in read and getattr(hints, name) is not None:
            raise ValueError(f"{checkpoint} states its {name.replace('_', ' ')} itself: leave {name}= out")


def build(tower: Tower, *, dtype: torch.dtype, device: torch.device) -> VisionTransformer:
    """The model with its weights. Each weight is read once, directly to where it stays.

    Raises:
        ValueError: a weight that is missing, unused, or of another shape than the configuration makes it.
    """
    model = build_shape(tower)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    state = {}
    if tower.config.position == "sincos2d":  # computed, never stored
        table = torch.zeros(shapes.pop("position.table"))
        table[0, tower.config.position_prefix :] = sincos_2d(tower.config.table_grid, tower.config.embed_dim)
        state["position.table"] = table.to(device=device, dtype=dtype)
    state |= read_state_dict(tower.keys, shapes, tower.weights, source=tower.source, dtype=dtype, device=device)
    model.load_state_dict(state, strict=True, assign=True)
    return model


def build_shape(tower: Tower) -> VisionTransformer:
    """The model on the meta device. Raises ValueError for sizes that no model can have."""
    try:
        with torch.device("meta"):
            return VisionTransformer(tower.config)
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes whose product no tensor can have
        raise ValueError(f"{tower.source} describes a model that cannot be made ({error}): download it again") from None


def read_state_dict(
    table: list[Key],
    shapes: Mapping[str, Sequence[int]],
    weights: WeightSource,
    *,
    source: str,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """Our state dict of `shapes` out of `weights`, each read once, to where it stays; arguments as `keys.read`.

    Raises:
        ValueError: a weight that is missing, unused, of another shape, or not plain floating point numbers.
    """
    copied = {name for row in table if len(row.theirs) > 1 or row.layout for name in row.theirs}

    def read(name: str) -> Tensor:
        stored = weights.get(name, keep=name not in copied)
        dense = stored.layout == torch.strided
        plain = stored.is_floating_point() and stored.dtype.itemsize > 1  # 8 bits need a scale from elsewhere
        if stored.is_meta or stored.is_quantized or not plain or not dense:
            kind = "no numbers" if stored.is_meta else str(stored.dtype) if dense else str(stored.layout)
            raise ValueError(
                f"{source}: {name} holds {kind}, expected plain floating point numbers: load the checkpoint that is not quantized"
            )
        value = stored.to(device=device, dtype=dtype)
        mapped = value is stored and name not in copied  # its pages are read at its first use, not here
        if not mapped and not value.isfinite().all():
            kind = (
                "values that are not finite" if not stored.float().isfinite().all() else f"values too large for {dtype}"
            )
            raise ValueError(f"{source}: {name} holds {kind}: download it again, or load another checkpoint")
        return value

    return keys.read(table, shapes, weights.shapes, read, source=source)
