"""Key tables: correspondence of a foreign checkpoint's tensors with ours, strict in both directions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ZEROS = "<zeros>"
"""In `Key.theirs`: a part that the foreign layout leaves out because it is zero. Its shape is its neighbors'."""

Spellings = tuple[tuple[str, str], ...]
"""(regular expression, replacement) of other names of weights, applied in order; what it gives are the usual names."""


@dataclass(frozen=True)
class TensorLayout:
    """Another arrangement of the same numbers."""

    write: Callable[[Tensor], Tensor]
    """Ours -> theirs."""
    read: Callable[[Tensor, Sequence[int]], Tensor]
    """(theirs, our shape) -> ours."""


TRANSPOSED = TensorLayout(write=lambda x: x.t(), read=lambda x, shape: x.t())
"""A transposed matrix."""

PATCH_VECTOR = TensorLayout(
    write=lambda x: x.permute(0, 2, 3, 1).flatten(1),
    read=lambda x, shape: x.unflatten(1, (shape[2], shape[3], shape[1])).permute(0, 3, 1, 2),
)
"""Our convolution (D, C, p, p) as a linear map of patch vectors in (row, column, channel) order, (D, p * p * C)."""


ONE_FRAME = TensorLayout(write=lambda x: x.unsqueeze(2), read=lambda x, shape: x.squeeze(2))
"""Our convolution (D, C, p, p) as one over frames too, (D, C, 1, p, p)."""

PATCH_ROW = TensorLayout(write=lambda x: x.flatten(1), read=lambda x, shape: x.view(*shape))
"""Our convolution (D, C, p, p) as a linear map of patch vectors in (channel, row, column) order, (D, C * p * p)."""


def table_to_grid(*sizes: int) -> TensorLayout:
    """Our position table (1, N, D) as (*sizes, D), whose product is N."""
    return TensorLayout(
        write=lambda x: x.reshape(*sizes, x.shape[-1]),
        read=lambda x, shape: x.reshape(*shape),
    )


def squares(side: int) -> TensorLayout:
    """Our linear map of squares of tokens as a convolution of their size and stride."""
    return TensorLayout(
        write=lambda x: x.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2),
        read=lambda x, shape: x.permute(0, 2, 3, 1).flatten(1),
    )


@dataclass(frozen=True)
class Key:
    """`ours` and `theirs` hold the same numbers: both sides concatenated on dim 0 are equal.

    One name on each side is a rename, ("qkv",) and ("q", "k", "v") a fusion. `drop` leading dimensions of size one
    that each of ours has and theirs lacks: (1, N, D) is stored as (N, D) with drop=1. `layout` rearranges what is joined.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    drop: int = 0
    layout: TensorLayout | None = None
    sizes: tuple[int, ...] = ()
    """Rows of each of theirs, where they are not equal; 0 for one row that is stored without that dimension."""


def key(
    ours: str | tuple[str, ...],
    theirs: str | tuple[str, ...],
    *,
    drop: int = 0,
    layout: TensorLayout | None = None,
    sizes: tuple[int, ...] = (),
) -> Key:
    """A `Key`; a single name need not be a tuple."""
    mine, other = ((name,) if isinstance(name, str) else name for name in (ours, theirs))
    return Key(mine, other, drop, layout, sizes)


def layer(ours: str, theirs: str | tuple[str, ...], *, bias: bool = True) -> list[Key]:
    """Weight, and bias if it has one, of a layer whose parameters are called the same on both sides."""
    names = (theirs,) if isinstance(theirs, str) else theirs
    return [key(f"{ours}.{part}", tuple(f"{name}.{part}" for name in names)) for part in ("weight", "bias")[: 1 + bias]]


def read(
    keys: Iterable[Key],
    shapes: Mapping[str, Sequence[int]],
    stored: Mapping[str, Sequence[int]],
    get: Callable[[str], Tensor],
    *,
    source: str,
) -> dict[str, Tensor]:
    """Our state dict out of a foreign one.

    Args:
        keys: the table; it must cover every name of `shapes`.
        shapes: our parameters and buffers.
        stored: shape of every tensor of this model in the checkpoint, by name; each must be used.
        get: reads one tensor by name; called once for each tensor that the table names.
        source: name of the checkpoint in an error.

    Raises:
        ValueError: a weight that is missing, unused, or of another shape than the configuration makes it.
    """
    keys = list(keys)
    wanted = [name for item in keys for name in item.theirs if name != ZEROS]
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise ValueError(
            f"{source} lacks {_list(missing)}: the file is incomplete or its configuration is for another model"
        )
    unused = sorted(set(stored) - set(wanted))
    if unused:
        raise ValueError(
            f"{source} holds {_list(unused)}, which this architecture does not have: its configuration is for another model"
        )
    uncovered = set(shapes) - {name for item in keys for name in item.ours}
    assert not uncovered, f"key table does not cover {sorted(uncovered)}"
    for item in keys:
        _check_shapes(item, shapes, stored, source)
    state = {}
    for item in keys:
        state.update(_ours(item, shapes, get))
    return state


def write(keys: Iterable[Key], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The foreign state dict of ours; `read` of it gives `state` back, bit for bit.

    Raises:
        ValueError: the foreign layout has no place for a weight, or needs one that does not exist.
    """
    keys = list(keys)
    homeless = set(state) ^ {name for item in keys for name in item.ours}
    if homeless:
        raise ValueError(f"this layout cannot express the architecture: it disagrees on {_list(sorted(homeless))}")
    foreign = {}
    for item in keys:
        parts = _theirs(item, [state[name] for name in item.ours])
        if ZEROS in parts and parts[ZEROS].any():
            raise ValueError(
                f"this layout cannot express the architecture: it has no place for a part of {item.ours[0]}"
            )
        for name, part in parts.items():
            if name in foreign and not torch.equal(foreign[name], part):
                raise ValueError(f"this layout cannot express the architecture: it has one {name} for two that differ")
            if name != ZEROS:
                foreign[name] = part.contiguous().clone()
    return foreign


def _theirs(item: Key, ours: list[Tensor]) -> dict[str, Tensor]:
    if not item.layout:
        ours = [part.flatten(0, item.drop) for part in ours]
    joined = torch.cat(ours) if len(ours) > 1 else ours[0]
    joined = item.layout.write(joined) if item.layout else joined
    if len(item.theirs) == 1:
        return {item.theirs[0]: joined}
    sizes = list(item.sizes) or [joined.shape[0] // len(item.theirs)] * len(item.theirs)
    parts = joined.split([size or 1 for size in sizes])
    return {name: part if size else part.squeeze(0) for name, part, size in zip(item.theirs, parts, sizes, strict=True)}


def _ours(item: Key, shapes: Mapping[str, Sequence[int]], get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    given = {name: get(name) for name in item.theirs if name != ZEROS}
    neighbor = next(iter(given.values()))
    parts = [given[name] if name in given else torch.zeros_like(neighbor) for name in item.theirs]
    parts = [
        part if size else part.unsqueeze(0) for part, size in zip(parts, item.sizes or [1] * len(parts), strict=True)
    ]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    if item.layout:
        joined = item.layout.read(joined, shapes[item.ours[0]]).contiguous()
    if len(item.ours) == 1:
        return {item.ours[0]: joined.reshape((1,) * item.drop + joined.shape)}
    ours = joined.split([shapes[name][item.drop] for name in item.ours])
    return {name: part.reshape((1,) * item.drop + part.shape) for name, part in zip(item.ours, ours, strict=True)}


def _check_shapes(
    item: Key, shapes: Mapping[str, Sequence[int]], stored: Mapping[str, Sequence[int]], source: str
) -> None:
    expected = _theirs(item, [torch.empty(tuple(shapes[name]), device="meta") for name in item.ours])
    for name, part in expected.items():
        if name != ZEROS and list(stored[name]) != list(part.shape):
            raise ValueError(
                f"{source}: {name} has shape {list(stored[name])}, but its configuration makes it {list(part.shape)}: "
                "configuration and weights are of different models"
            )


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return (
        f"{len(names)} weights ({shown}{', ...' if len(names) > 5 else ''})"
        if len(names) > 1
        else f"the weight {names[0]}"
    )
