"""`.npz` files of big_vision and the ViT releases before it: flax parameters, read as PyTorch lays them out.

Nothing is unpickled; sizes are taken from the array headers before anything is read. Kernels come transposed to
(out, in), convolutions to (out, channels, rows, columns), heads are merged, blocks that `scan` stacked are split.
"""

import math
import re
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

_DTYPES = {"float32", "float16", "float64", "bfloat16"}
_BFLOAT16 = np.dtype("V2")  # numpy has no bfloat16: jax's arrives as two opaque bytes


_DAMAGE = (
    ValueError, TypeError, SyntaxError, EOFError, OSError, RecursionError, MemoryError, NotImplementedError, OverflowError,
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip
"""Errors of numpy and zipfile on damaged members."""


class NpzFile:
    """Arrays by name, '/'-joined, without a leading `params/` or `opt/target/`; read one at a time.

    Raises:
        ValueError: not an npz file, a damaged one, arrays of objects, or a header that states more than the file holds.
    """

    def __init__(self, path: Path):
        self.path = path
        self._arrays: dict[str, tuple[str, tuple[int, ...]]] = {}  # our name -> (member, raw shape)
        try:
            self._zip = zipfile.ZipFile(path)
            members = self._zip.infolist()
            size, on_disk = sum(member.file_size for member in members), path.stat().st_size
            if size > max(2**30, 20 * on_disk):  # weights hardly shrink: this is made to fill the memory
                raise ValueError(f"{path} unpacks from {on_disk} to {size} bytes: expected a file of weights")
            for member in members:
                self._arrays[_plain(member.filename.removesuffix(".npy"))] = (member.filename, self._shape(member))
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{path} is not a complete npz file ({error}): download it again") from None
        self._split = {name: home for stored in self._arrays for name, home in self._blocks(stored).items()}
        self.shapes = {
            name: tuple(_torch(name, torch.empty(self._raw(name), device="meta")).shape) for name in self._split
        }

    def get(self, name: str, *, keep: bool = True) -> Tensor:
        """The array called `name` as PyTorch lays it out."""
        stored, index = self._split[name]
        try:
            with self._zip.open(self._arrays[stored][0]) as file:
                array = npy.read_array(file, allow_pickle=False)
        except _DAMAGE as error:
            raise ValueError(f"{self.path}: {stored} is damaged ({error}): download it again") from None
        array = array[index] if index is not None else array
        whole = np.ascontiguousarray(array)
        if whole.dtype == _BFLOAT16:
            return _torch(name, torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16)).contiguous()
        return _torch(name, torch.from_numpy(whole)).contiguous()

    def num_heads(self, prefix: str) -> int:
        """Attention heads of the first block under `prefix`: their axis is in the kernel's shape."""
        for name in self._split:
            if name.startswith(prefix) and name.endswith("query/kernel"):
                return self._raw(name)[-2]
        raise ValueError(f"{self.path} holds no attention under {prefix}")

    def _raw(self, name: str) -> tuple[int, ...]:
        stored, index = self._split[name]
        shape = self._arrays[stored][1]
        return shape if index is None else shape[1:]

    def _blocks(self, stored: str) -> dict[str, tuple[str, int | None]]:
        """Names of the arrays stored under one name: itself, or the blocks that `scan` stacked under `encoderblock`."""
        if "/encoderblock/" not in f"/{stored}":
            return {stored: (stored, None)}
        depth = self._arrays[stored][1][0]
        return {re.sub(r"encoderblock/", f"encoderblock_{i}/", stored): (stored, i) for i in range(depth)}

    def _shape(self, member: zipfile.ZipInfo) -> tuple[int, ...]:
        with self._zip.open(member) as file:
            try:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
            except _DAMAGE as error:
                raise ValueError(
                    f"{self.path}: {member.filename} is not a numpy array ({error}): use the original file"
                ) from None
        if dtype.hasobject or (dtype.name not in _DTYPES and dtype != _BFLOAT16):
            raise ValueError(
                f"{self.path}: {member.filename} holds {dtype}, expected floating point numbers; nothing of it was read"
            )
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(
                f"{self.path}: {member.filename} states the shape {list(shape)} and holds less: download it again"
            )
        return tuple(int(size) for size in shape)


def _plain(name: str) -> str:
    return re.sub(r"^(opt/target/|params/|target/)+", "", name)


def _torch(name: str, array: Tensor) -> Tensor:
    """`array` called `name` in flax, as PyTorch lays it out."""
    parent, _, leaf = f"/{name}".rpartition("/")
    if leaf == "bias":
        return array.flatten()
    if leaf == "pos_embedding" and array.shape[0] != 1:  # NaFlex: (rows, columns, D)
        return array[None]
    if leaf != "kernel":
        return array
    if parent.endswith("/embedding"):
        return array.permute(3, 2, 0, 1) if array.ndim == 4 else array.t()
    if parent.endswith(("/query", "/key", "/value")):  # (D, heads, head width)
        return array.flatten(1).t()
    if parent.endswith("/out"):  # (heads, head width, D)
        return array.flatten(0, 1).t()
    return array.t()
