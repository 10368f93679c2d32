"""Arrays from untrusted messages: numbers only, as many as the shape needs."""

import re
from collections.abc import Sequence

import numpy as np

MOST_VALUES = 100_000
"""Largest number of values in all lists and maps of a message, where an array counts as one: a limit on the time of reading."""
_NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])|bool|u?int(8|16|32|64)|float(16|32|64)")


def number_type(name: object) -> np.dtype:
    """The dtype of a name such as "<f4" or "float32".

    Raises:
        ValueError: objects, structures, strings, and all that is no name of booleans, integers or floats.
    """
    if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
        raise ValueError(f"an array has dtype {str(name)[:40]!r}: expected booleans, integers or floats")
    return np.dtype(name)


def array(data: bytes, dtype: object, shape: object) -> np.ndarray:
    """An array of its own memory.

    Raises:
        ValueError: another dtype than of numbers, a shape that is none, or one that the data do not fill.
    """
    kind = number_type(dtype)
    if (
        not isinstance(shape, Sequence)
        or len(shape) > 8
        or not all(type(side) is int and 0 <= side < 2**31 for side in shape)
    ):
        raise ValueError(f"an array has shape {str(shape)[:40]}: expected a list of at most 8 sizes")
    count = 1
    for side in shape:
        count *= side
    if count * kind.itemsize != len(data):
        raise ValueError(
            f"an array of dtype {kind} and shape {list(shape)} came with {len(data)} bytes: expected {count * kind.itemsize}"
        )
    return np.frombuffer(data, dtype=kind).reshape(tuple(shape)).copy()
