"""Messages of openpi's client: msgpack, in which an array is a map with special keys.

{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [...]}, and {b"__npgeneric__": True, b"data": number,
b"dtype": "<f4"} for a numpy scalar (openpi-client, msgpack_numpy).
"""

from collections.abc import Sized
from typing import Any, cast

import msgpack
import numpy as np

from vlm_vision.serve.protocols.arrays import MOST_VALUES, array, number_type

_MOST_ITEMS = 4096
"""Largest number of items in one list or map."""


def pack(message: object) -> bytes:
    """Numbers, strings, lists, dictionaries and arrays of numbers to bytes."""
    return cast(bytes, msgpack.packb(message, default=_packed))


def unpack(data: bytes) -> Any:
    """The other way.

    Raises:
        ValueError: no msgpack, more than `MOST_VALUES` values, or an array of anything but numbers.
    """
    held = _CountedItems()
    limits = {"max_array_len": _MOST_ITEMS, "max_map_len": _MOST_ITEMS, "max_ext_len": 0}
    try:
        return msgpack.unpackb(data, list_hook=held.list, object_hook=held.map, **limits)
    except (ValueError, TypeError, KeyError, OverflowError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"the message cannot be read as msgpack with arrays ({reason[:200]})") from None


class _CountedItems:
    """Counts what the lists and maps of one message hold, each when it is complete."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def list(self, found: list) -> list:
        self._count(found)
        return found

    def map(self, found: dict) -> object:
        self._count(found)
        return _unpacked(found)

    def _count(self, found: Sized) -> None:
        self._left -= 1 + len(found)
        if self._left < 0:
            raise ValueError(f"more than {MOST_VALUES} values; send images as arrays")


def _packed(value: object) -> dict[bytes, object]:
    if isinstance(value, np.ndarray | np.generic):
        number_type(value.dtype.str)
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} cannot be sent in a message")


def _unpacked(found: dict) -> object:
    if b"__ndarray__" in found:
        if not isinstance(found.get(b"data"), bytes):
            raise ValueError("an array has no bytes in data")
        return array(found[b"data"], found.get(b"dtype"), found.get(b"shape"))
    if b"__npgeneric__" in found:
        return number_type(found.get(b"dtype")).type(found.get(b"data"))
    return found
