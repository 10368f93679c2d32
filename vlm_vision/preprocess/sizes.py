"""The size that an image is resized to, by each rule of `Preprocess.resize`; those of single image processors of
transformers in the order of their code, for the same floating point results."""

import math
from collections.abc import Callable
from itertools import product

from vlm_vision.preprocess.resize import (
    enlarged,
    size_filling,
    size_in_rows_and_columns,
    size_near_area,
    size_of_area,
    size_on_canvas,
    size_within_budget,
)


def edges_rounded(height: int, width: int, least: int, longest: int, divisor: int) -> tuple[int, int]:
    """The longer edge to `longest`, the shorter by the same factor, half pixels to even, but at least `least` (Janus)."""
    scale = longest / max(height, width)
    return max(round(height * scale), least), max(round(width * scale), least)


def edges_floored(height: int, width: int, least: int, longest: int, divisor: int) -> tuple[int, int]:
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


SIZES: dict[str, Callable[[int, int, int, int, int], tuple[int, int]]] = {
    "edges_rounded": edges_rounded,
    "edges_floored": edges_floored,
    "edges_divided": edges_divided,
    "half_area": half_area,
}
"""Resize -> (height, width, the two numbers of `resize_to`, `patch_size`) -> (height, width)."""


def size_after(
    mode: str, height: int, width: int, to: tuple[int, int], *, patch_size: int, max_patches: int, multiple: int
) -> tuple[int, int]:
    """(height, width) to which `Preprocess.resize` takes an image of this height and width; `to` is its `resize_to`."""
    to_height, to_width = to
    if mode in SIZES:
        return SIZES[mode](height, width, *to, patch_size)
    if mode == "max_patches":
        return size_within_budget(height, width, patch_size, max_patches)
    if mode == "fill_patches":
        return size_filling(height, width, patch_size, max_patches)
    if mode == "whole_patches":
        return size_in_rows_and_columns(height, width, patch_size, max_patches)
    if mode == "shaped_patches":
        return size_of_shape(height, width, patch_size, max_patches)
    if mode == "shrunk_patches":
        return size_shrunk(height, width, patch_size, max_patches, to_height)
    if mode == "bounded_patches":
        return size_bounded(height, width, patch_size, multiple, *to)
    if mode == "near_area":
        return size_near_area(height, width, patch_size, to_height)
    if mode == "within_patches":
        ratio = max(height / to_height, width / to_width, 1.0)
        sides = (math.floor(side / ratio) for side in (height, width))
        tall, wide = ((side - 1) // patch_size + 1 for side in sides)
        return tall * patch_size, wide * patch_size
    if mode == "longest_edge":
        scale = to_height * 1.0 / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)
    if mode in ("area", "floored_area", "rounded_area"):
        height, width = enlarged(height, width, patch_size, mode)
        return size_of_area(height, width, patch_size, *to)
    if mode == "padded_area":
        return size_on_canvas(height, width, patch_size, *to)[0]
    if mode in ("shortest_edge", "letterbox"):
        # written in the order of transformers and torchvision, for the same floating point result
        if width <= height:
            return int(to_height * height / width), to_width
        return to_height, int(to_width * width / height)
    if mode in ("cover", "fit"):
        ratio = (min if mode == "cover" else max)(height / to_height, width / to_width)
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    if mode == "within":
        ratio = max(height / to_height, width / to_width)
        return max(1, int(height / ratio)), max(1, int(width / ratio))
    if mode == "scaled_within":
        ratio = min(to_height / height, to_width / width)
        return max(1, int(height * ratio)), max(1, int(width * ratio))
    if mode == "between":
        least, most = to
        ratio = width / height
        if max(height, width) > most:  # written in the order of transformers, for the same floating point result
            height, width = (int(most / ratio), most) if width >= height else (most, int(most * ratio))
        return max(height, least), max(width, least)
    return to
