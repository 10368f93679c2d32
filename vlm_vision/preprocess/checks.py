"""Checks of the fields of a `Preprocess`."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

from projectors.names import did_you_mean


def whole_number(value: float) -> int:
    """Raises TypeError, as `operator.index`, for a part of a number."""
    return operator.index(int(value) if value == int(value) else value)  # type: ignore[arg-type]


def is_factor(value: float) -> bool:
    return math.isfinite(value) and value != 0


def check_name(field: str, name: Any, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        hint = did_you_mean(name, allowed) or "; use one of these"
        raise ValueError(f"{field} is {name!r}: expected one of {', '.join(allowed)}{hint}")


def checked(
    name: str, given: Iterable, convert: Callable, count: int, valid: Callable[[Any], bool], kind: str
) -> tuple:
    """The value as a tuple of `count` ints or floats, so that equal specs have equal fingerprints."""
    try:
        values = tuple(convert(value) for value in given)
    except (TypeError, ValueError):
        values = ()
    if len(values) != count or not all(map(valid, values)):
        raise ValueError(f"{name} is {given!r}: expected {count} {kind}")
    return values
