"""Checks of the fields of a `Preprocess`."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

from projectors.names import did_you_mean
from vlm_vision.files import shown


def whole_number(value: float) -> int:
    """Raises TypeError, as `operator.index`, for a part of a number."""
    return operator.index(int(value) if value == int(value) else value)  # type: ignore[arg-type]


def is_factor(value: float) -> bool:
    return math.isfinite(value) and value != 0


def is_mean(value: float) -> bool:
    """Whether images of any scale, 0..1 or 0..255, could have this mean."""
    return abs(value) <= 10_000


def is_std(value: float) -> bool:
    """As `is_mean`, for a deviation."""
    return 1e-6 <= value <= 10_000


STATISTICS = {
    "mean": (is_mean, "finite numbers from -10000 to 10000"),
    "std": (is_std, "finite numbers from 1e-6 to 10000, not zero"),
}
"""Field -> check of one of its three numbers, and its expected values in words."""


def check_name(field: str, name: Any, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        hint = did_you_mean(name, allowed) or "; use one of these"
        raise ValueError(f"{field} is {shown(name)}: expected one of {', '.join(allowed)}{hint}")


def checked(
    name: str, given: Iterable, convert: Callable, count: int, valid: Callable[[Any], bool], kind: str
) -> tuple:
    """The value as a tuple of `count` ints or floats, so that equal specs have equal fingerprints."""
    try:
        values = tuple(convert(value) for value in given)
    except (TypeError, ValueError):
        values = ()
    if len(values) != count or not all(map(valid, values)):
        raise ValueError(f"{name} is {shown(given)}: expected {count} {kind}")
    return values


_MOST_RESIZED = 2**25
"""Most pixels that a smaller image may be resized to."""


def bounded(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """The size to which an image is resized. Raises ValueError for an image so thin that it would need gigabytes."""
    if size[0] * size[1] > max(_MOST_RESIZED, height * width):
        raise ValueError(
            f"an image of {height}x{width} pixels would be resized to {size[0]}x{size[1]} before its crop: crop it, or leave it out"
        )
    return size
