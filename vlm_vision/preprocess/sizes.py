"""Sizes of resized images by rules of single image processors of transformers, in the order of their code, for the same
floating point results."""

import math
from collections.abc import Callable


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


SIZES: dict[str, Callable[[int, int, int, int, int], tuple[int, int]]] = {
    "edges_rounded": edges_rounded,
    "edges_floored": edges_floored,
    "edges_divided": edges_divided,
    "half_area": half_area,
}
"""Resize -> (height, width, the two numbers of `resize_to`, `patch_size`) -> (height, width)."""
