"""The size that an image is resized to, by each rule of `Preprocess.resize`; those of single image processors of
transformers in the order of their code, for the same floating point results."""

import math
from collections.abc import Callable
from itertools import product
from typing import Literal, NamedTuple

from vlm_vision.preprocess.resize import (
    enlarged,
    size_filling,
    size_in_rows_and_columns,
    size_near_area,
    size_of_area,
    size_on_canvas,
    size_within_budget,
)

ResizeMode = Literal[
    "none", "squash", "shortest_edge", "longest_edge", "max_patches", "fill_patches", "whole_patches", "within_patches", "area",
    "floored_area", "rounded_area", "padded_area", "near_area", "letterbox", "square", "cover", "fit", "within",
    "scaled_within", "between", "edges_rounded", "edges_floored", "edges_divided", "half_area",
    "shaped_patches", "shrunk_patches", "bounded_patches",
]  # fmt: skip
COUNTED = ("max_patches", "fill_patches", "whole_patches", "shaped_patches")
"""Resizes to a number of patches."""
SIDED = ("shrunk_patches", "bounded_patches")
"""Resizes that `multiple` goes with."""
AREAS = ("area", "floored_area", "rounded_area", "padded_area", "near_area", "half_area")
"""Resizes to an area, or within two, in whole squares of patches."""


def edges_rounded(height: int, width: int, least: int, longest: int) -> tuple[int, int]:
    """The longer edge to `longest`, the shorter by the same factor, half pixels to even, but at least `least` (Janus)."""
    scale = longest / max(height, width)
    return max(round(height * scale), least), max(round(width * scale), least)


def edges_floored(height: int, width: int, least: int, longest: int) -> tuple[int, int]:
    """The longer edge to `longest`, the shorter by the same factor, rounded down, but at least `least` (Aria)."""
    scale = longest / max(height, width)
    if width >= height:
        return max(int(height * scale), least), longest
    return longest, max(int(width * scale), least)


def edges_divided(height: int, width: int, shorter: int, longest: int, divisor: int) -> tuple[int, int]:
    """The shorter edge to `shorter`, or the longer to `longest` if it were above; both down to multiples (BridgeTower)."""
    scale = shorter / min(height, width)
    tall, wide = (shorter, scale * width) if height < width else (scale * height, shorter)
    if max(tall, wide) > longest:
        scale = longest / max(tall, wide)
        tall, wide = scale * tall, scale * wide
    return int(tall + 0.5) // divisor * divisor, int(wide + 0.5) // divisor * divisor


def half_area(height: int, width: int, least: int, most: int, divisor: int) -> tuple[int, int]:
    """Half of each side, rounded to multiples, where the roots of `least` and `most` bound the edges (GLM-Image).

    Raises:
        ValueError: an image with a side below `divisor`, or one more than four times the other.
    """
    if min(height, width) < divisor or max(height, width) / min(height, width) > 4:
        raise ValueError(
            f"an image of {height}x{width} pixels has a side below {divisor}, or one more than 4 times the other: crop it"
        )
    shortest, longest = int(round(math.sqrt(least))), int(round(math.sqrt(most)))
    scale = shortest / min(height, width) if min(height, width) < shortest else 1.0
    if max(height, width) * scale > longest:
        scale = longest / max(height, width)
    sides = [max(divisor, int(round(side // 2 * scale / divisor)) * divisor) for side in (height, width)]
    if max(sides) > longest:
        above = max(sides) / longest
        sides = [max(divisor, int(math.floor((side / above) / divisor)) * divisor) for side in sides]
    return sides[0], sides[1]


def size_of_shape(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Sides of whole patches, at most `most` in all, whose ratio is nearest to the image's (Muse)."""
    tall, wide = height / patch, width / patch
    if tall * wide > most:
        ratio = wide / tall
        tall = (most / ratio) ** 0.5
        wide = tall * ratio
    sides = list(set(product((math.floor(tall), math.ceil(tall)), (math.floor(wide), math.ceil(wide)))))
    sides = [grid for grid in sides if min(grid) >= 1 and grid[0] * grid[1] <= most]
    sides = sides or [(max(1, round(tall)), max(1, round(wide)))]
    rows, columns = min(sides, key=lambda grid: abs(grid[0] / grid[1] - height / width))
    return rows * patch, columns * patch


def size_shrunk(height: int, width: int, patch: int, most: int, edge: int) -> tuple[int, int]:
    """The image scaled down to at most `most` patches and edges of at most `edge` pixels (Kimi K2.5)."""
    count = max(1.0, height // patch) * max(1.0, width // patch)
    scale = min(1.0, math.sqrt(most / count), edge / height, edge / width)
    tall, wide = (min(max(1, int(side * scale)), edge) for side in (height, width))
    return tall, wide


def size_bounded(height: int, width: int, patch: int, multiple: int, least: int, most: int) -> tuple[int, int]:
    """Sides that are multiples of `multiple`, about the image's, with about `least` to `most` patches (Nemotron Omni).

    Raises:
        ValueError: an image so narrow that no patch is left.
    """
    rows, columns = round(height / patch + 0.5), round(width / patch + 0.5)
    factor = min(math.sqrt(most / (rows * columns)), 1.0)
    rows, columns = math.floor(factor * rows), math.floor(factor * columns)
    if not rows * columns:
        raise ValueError(f"an image of {height}x{width} pixels does not keep one patch of {patch} pixels: crop it")
    if most > least and rows * columns < least:
        factor = math.sqrt(least / (rows * columns))
        rows, columns = math.ceil(factor * rows), math.ceil(factor * columns)
    merge = multiple // patch
    rows = _merged(rows, columns, merge, most)
    return rows * patch, _merged(columns, rows, merge, most) * patch


def _merged(side: int, other: int, merge: int, most: int) -> int:
    """A side, in patches, up to a multiple of `merge` if no more than `most` patches come of it, else down."""
    if not side % merge:
        return side
    above = side + merge - side % merge
    return above if above * other <= most else max(merge, side - side % merge)


def within_whole_patches(height: int, width: int, to: tuple[int, int], patch: int) -> tuple[int, int]:
    """An image larger than `to` within it, its aspect ratio kept; then each side rounded up to whole patches (Pixtral)."""
    ratio = max(height / to[0], width / to[1], 1.0)
    rows, columns = ((math.floor(side / ratio) - 1) // patch + 1 for side in (height, width))
    return rows * patch, columns * patch


def longest_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """The longer edge to `edge`, the aspect ratio kept, the shorter edge rounded (SAM)."""
    scale = edge * 1.0 / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def shortest_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """The shorter edge to `edge`, the aspect ratio kept, the longer edge rounded down.

    Written in the order of transformers and torchvision, for the same floating point result.
    """
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def scaled(
    height: int, width: int, to: tuple[int, int], *, larger: bool, rounding: Callable[[float], int]
) -> tuple[int, int]:
    """Both sides over the larger, or the smaller, of their ratios to `to`, and then rounded to at least one pixel."""
    ratio = (max if larger else min)(height / to[0], width / to[1])
    return max(1, rounding(height / ratio)), max(1, rounding(width / ratio))


def scaled_within(height: int, width: int, to: tuple[int, int]) -> tuple[int, int]:
    """The largest size within `to`, the aspect ratio kept, both edges rounded down after a product (transformers' max_height)."""
    ratio = min(to[0] / height, to[1] / width)
    return max(1, int(height * ratio)), max(1, int(width * ratio))


def between(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """A longer edge above `most` to that, the shorter rounded down; then each edge below `least` to that (Idefics2).

    Written in the order of transformers, for the same floating point result.
    """
    ratio = width / height
    if max(height, width) > most:
        height, width = (int(most / ratio), most) if width >= height else (most, int(most * ratio))
    return max(height, least), max(width, least)


class Bounds(NamedTuple):
    """Numbers of a `Preprocess` that decide a size; its fields of these names."""

    resize_to: tuple[int, int]
    patch_size: int
    max_patches: int
    multiple: int


def _area(mode: str) -> Callable[[int, int, Bounds], tuple[int, int]]:
    return lambda h, w, b: size_of_area(*enlarged(h, w, b.patch_size, mode), b.patch_size, *b.resize_to)


SIZES: dict[ResizeMode, Callable[[int, int, Bounds], tuple[int, int]]] = {
    "squash": lambda h, w, b: b.resize_to,
    "square": lambda h, w, b: b.resize_to,
    "shortest_edge": lambda h, w, b: shortest_edge(h, w, b.resize_to[0]),
    "letterbox": lambda h, w, b: shortest_edge(h, w, b.resize_to[0]),
    "longest_edge": lambda h, w, b: longest_edge(h, w, b.resize_to[0]),
    "cover": lambda h, w, b: scaled(h, w, b.resize_to, larger=False, rounding=round),
    "fit": lambda h, w, b: scaled(h, w, b.resize_to, larger=True, rounding=round),
    "within": lambda h, w, b: scaled(h, w, b.resize_to, larger=True, rounding=int),
    "scaled_within": lambda h, w, b: scaled_within(h, w, b.resize_to),
    "between": lambda h, w, b: between(h, w, *b.resize_to),
    "edges_rounded": lambda h, w, b: edges_rounded(h, w, *b.resize_to),
    "edges_floored": lambda h, w, b: edges_floored(h, w, *b.resize_to),
    "edges_divided": lambda h, w, b: edges_divided(h, w, *b.resize_to, b.patch_size),
    "area": _area("area"),
    "floored_area": _area("floored_area"),
    "rounded_area": _area("rounded_area"),
    "padded_area": lambda h, w, b: size_on_canvas(h, w, b.patch_size, *b.resize_to)[0],
    "near_area": lambda h, w, b: size_near_area(h, w, b.patch_size, b.resize_to[0]),
    "half_area": lambda h, w, b: half_area(h, w, *b.resize_to, b.patch_size),
    "max_patches": lambda h, w, b: size_within_budget(h, w, b.patch_size, b.max_patches),
    "fill_patches": lambda h, w, b: size_filling(h, w, b.patch_size, b.max_patches),
    "whole_patches": lambda h, w, b: size_in_rows_and_columns(h, w, b.patch_size, b.max_patches),
    "within_patches": lambda h, w, b: within_whole_patches(h, w, b.resize_to, b.patch_size),
    "shaped_patches": lambda h, w, b: size_of_shape(h, w, b.patch_size, b.max_patches),
    "shrunk_patches": lambda h, w, b: size_shrunk(h, w, b.patch_size, b.max_patches, b.resize_to[0]),
    "bounded_patches": lambda h, w, b: size_bounded(h, w, b.patch_size, b.multiple, *b.resize_to),
}
"""Resize -> (height, width) of an image -> (height, width) to which it is resized."""
