"""One safetensors file, opened once: names, shapes and dtypes from its header, tensors from its pages."""

import json
import math
import mmap
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""Name in the file -> torch's. A tensor of another dtype has a shape and cannot be read."""

_MOST = 100_000_000
"""Bytes of a header, by the format's definition."""


class SafetensorsFile:
    """Tensors by name. The file is mapped, not read: only the pages of a requested tensor are loaded.

    `places` maps each name to the first byte of its tensor and the one after the last.

    Raises:
        ValueError: a truncated file, or a header that does not describe its bytes.
    """

    def __init__(self, path: Path):
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype | None] = {}
        self.places: dict[str, tuple[int, int]] = {}
        try:
            self._file = path.open("rb")
            weakref.finalize(self, self._file.close)
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._read_header()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a complete safetensors file ({error}): download it again") from None

    def _read_header(self) -> None:
        size = int.from_bytes(self._map[:8], "little")
        if not 2 <= size <= min(_MOST, len(self._map) - 8):
            raise ValueError(f"its header would have {size} bytes")
        start = 8 + size
        header: dict[str, Any] = json.loads(self._map[8:start].decode("utf-8"))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
            dtype = DTYPES.get(entry["dtype"])
            if not all(type(side) is int and side >= 0 for side in (*shape, first, last)) or first > last:
                raise ValueError(f"{name} has shape {list(shape)} at {[first, last]}")
            if dtype is not None and math.prod(shape) * dtype.itemsize != last - first:
                raise ValueError(f"{name} has {last - first} bytes, and its shape {list(shape)} needs another number")
            self.shapes[name], self.dtypes[name] = shape, dtype
            self.places[name] = (start + first, start + last)
        reached = start
        for first, last in sorted(self.places.values()):
            if first != reached:
                raise ValueError("its tensors overlap, or leave a gap")
            reached = last
        if reached != len(self._map):
            raise ValueError(f"its tensors end at byte {reached}, and the file at {len(self._map)}")

    def get(self, name: str, *, keep: bool = True) -> Tensor:
        """The tensor called `name`.

        keep: False for a tensor that is copied at once: it has its own memory, without a page of the mapped file.
        """
        dtype, shape, (first, last) = self.dtypes[name], self.shapes[name], self.places[name]
        if dtype is None:
            raise ValueError(f"{self.path}: {name} has an unknown dtype, expected one of {', '.join(DTYPES)}")
        if first == last:
            return torch.empty(shape, dtype=dtype, device="cpu")
        if keep and not first % dtype.itemsize:
            data = torch.frombuffer(self._map, dtype=torch.uint8, count=last - first, offset=first)
            return data.view(dtype).view(shape)
        own = torch.empty(shape, dtype=dtype, device="cpu")
        self._file.seek(first)
        target: Any = own.view(-1).view(torch.uint8).numpy()
        if self._file.readinto(target) != last - first:
            raise ValueError(f"{self.path} is shorter than its header states: download it again")
        return own


def overwrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors over those of the same names, shapes and dtypes in a file: every other byte stays as it is."""
    stored = SafetensorsFile(path)
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            assert (tuple(tensor.shape), tensor.dtype) == (stored.shapes[name], stored.dtypes[name])
            file.seek(stored.places[name][0])
            numbers: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            file.write(numbers)
