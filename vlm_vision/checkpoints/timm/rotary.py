"""Rotary positions of the towers in timm's module `eva`, except DINOv3's: by name, and the arguments that override it."""

import re
from typing import Any, Literal

from vlm_vision.checkpoints.families.rotary import channel_order
from vlm_vision.nn.rope import Rope

Json = dict[str, Any]

_ROPES: tuple[tuple[str, Json], ...] = (
    (r"eva02_(?!enormous)", dict(ref_feat_shape=16)),
    (r"vit_\w+_rope_reg\d+_gap", dict(ref_feat_shape=16)),
    (r"vit_pe_core_base", dict(ref_feat_shape=14, rope_grid_offset=1, rope_grid_indexing="xy")),
    (r"vit_pe_core_gigantic", dict(ref_feat_shape=32, rope_grid_indexing="xy")),
    (r"vit_pe_core", dict(ref_feat_shape=24, rope_grid_offset=1, rope_grid_indexing="xy")),
    (r"vit_pe_\w+_gigantic", dict(ref_feat_shape=32, rope_grid_indexing="xy")),
    (r"vit_pe_", dict(ref_feat_shape=32, rope_grid_offset=1, rope_grid_indexing="xy")),
    (r"vit_\w+_rope_", dict(rope_temperature=100.0, rope_grid_indexing="xy")),
)
"""Start of an architecture's name -> its arguments in timm, the first that fits."""

ARGUMENTS = ("ref_feat_shape", "rope_grid_offset", "rope_grid_indexing", "rope_temperature")
"""model_args that `rope_of` and `order_of` read."""


def has_table(name: str) -> bool:
    """Whether an architecture has a learned table too."""
    return "_rope_" not in name or "_ape_" in name


def rope_of(name: str, arguments: Json) -> Rope | None:
    """The rotary positions of an architecture; None for one without those of this module.

    Raises:
        ValueError: a reference grid that is not square, or an offset that is no whole number.
    """
    values = _values(name, arguments)
    if values is None:
        return None
    span, first = values.get("ref_feat_shape") or 0, values.get("rope_grid_offset") or 0
    sides = {span} if isinstance(span, int) else set(span)
    if len(sides) != 1 or first != int(first) or first < 0:
        raise ValueError(
            f"model_args has ref_feat_shape {span!r} and rope_grid_offset {first!r}: expected a square grid and a whole number"
        )
    side = int(sides.pop())
    return Rope(
        base=float(values.get("rope_temperature") or 10000.0),
        coordinates="share" if side else "index",
        span=side,
        first=int(first),
    )


def order_of(name: str, arguments: Json, head_dim: int) -> list[int] | None:
    """Order of the channels of a query or key head, as `key_table` takes it; None for an architecture without `rope_of`."""
    values = _values(name, arguments)
    if values is None:
        return None
    return channels(head_dim, values.get("rope_grid_indexing") or "ij")


def channels(head_dim: int, indexing: str) -> list[int]:
    """For each of our channels of a head, timm's; raises ValueError for an indexing that is neither "ij" nor "xy"."""
    if indexing not in ("ij", "xy"):
        raise ValueError(f"model_args has rope_grid_indexing {indexing!r}: expected 'ij' or 'xy'")
    axes: Literal["rows first", "columns first"] = "rows first" if indexing == "ij" else "columns first"
    return channel_order(head_dim, axes=axes, channels="neighbors")


def _values(name: str, arguments: Json) -> Json | None:
    own = next((values for start, values in _ROPES if re.match(start, name)), None)
    return None if own is None else own | {key: arguments[key] for key in ARGUMENTS if key in arguments}
