"""A shard: one safetensors file of all its images' tokens, and its part of the index, a parquet file.

Both are written in a folder of the store and moved to their places, the part of the index last: a shard exists when that does. Memory holds one
batch: tensors grow in files of their own, which are joined at the end.
"""

import hashlib
import json
import mmap
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

INDEX, TENSORS, FAILURES, WORK = "index", "tensors", "failures", ".work"
"""Folders of a store. WORK holds the plan and what is being written, and is removed at the end."""
PATCHES = "patch_tokens."
_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()}
_HEADER = struct.Struct("<Q")


def schema(label: str) -> pa.Schema:
    """Columns of the index. `label` is int64 or string."""
    return pa.schema(
        [
            ("key", pa.string()),
            ("shard", pa.int32()),
            ("row", pa.int32()),
            ("offset", pa.int64()),
            ("tokens", pa.int32()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("frames", pa.int32()),
            ("label", pa.int64() if label == "int" else pa.string()),
            ("caption", pa.string()),
        ]
    )


def file_name(number: int, suffix: str) -> str:
    """Of a file of a shard."""
    return f"{number:05d}.{suffix}"


def read_failures(store: Path) -> dict[str, str]:
    """Key -> reason of each image that could not be read."""
    files = sorted((store / FAILURES).glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["key"]: line["reason"] for line in lines}


def stored_keys(store: Path) -> set[str]:
    """Keys of all rows."""
    parts = (store / INDEX).glob("*.parquet")
    return {key for part in parts for key in pq.read_table(part, columns=["key"])["key"].to_pylist()}


def bad_images(store: Path) -> dict[str, str]:
    """Key -> reason of each image that could not be read, and was not later."""
    failures = read_failures(store)
    keys = stored_keys(store) if failures else set()
    return {key: reason for key, reason in failures.items() if key not in keys}


class ShardWriter:
    """Writes one shard, image by image, then `finish`.

    Args:
        store: folder of the store.
        number: of the shard.
        stamp: fingerprint of the settings, which both files carry together with that of the shard's keys.
        label: "int" or "str".
    """

    def __init__(self, store: Path, number: int, *, stamp: str, label: str):
        self.store, self.number, self.stamp, self.label = store, number, stamp, label
        self.staging = store / WORK / f"{number:05d}"
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {}
        self._shapes: dict[str, tuple[str, tuple[int, ...], int]] = {}
        self._rows: list[dict[str, Any]] = []
        self._tokens = 0
        self.failures: list[tuple[str, str]] = []

    def add(
        self,
        key: str,
        tensors: Mapping[str, Tensor],
        *,
        grid: tuple[int, int],
        frames: int,
        label: int | str | None,
        caption: str | None,
    ) -> None:
        """One image. Tensors of patches (N, D) and their scales (N,) follow one another; all others are one row each.

        Raises:
            ValueError: tensors of other names or widths than those of the images before.
        """
        count = 0
        if self._shapes and set(tensors) != set(self._shapes):
            raise ValueError(f"{key} has {', '.join(tensors)}, images before have {', '.join(self._shapes)}")
        for tensor_name, value in tensors.items():
            if tensor_name.startswith(PATCHES):
                count = value.shape[0]
            else:
                value = value[None]
            self._append(tensor_name, value)
        self._rows.append(
            {
                "key": key,
                "shard": self.number,
                "row": len(self._rows),
                "offset": self._tokens,
                "tokens": count,
                "height": grid[0],
                "width": grid[1],
                "frames": frames,
                "label": label,
                "caption": caption,
            }
        )
        self._tokens += count

    def fail(self, key: str, reason: str) -> None:
        """An image that cannot be read."""
        self.failures.append((key, " ".join(reason.split())))

    def finish(self, about: Mapping[str, Any]) -> None:
        """Move the shard into the store. `about` goes into the metadata of its part of the index, as JSON."""
        stamp = shard_stamp(self.stamp, [row["key"] for row in self._rows])
        tensors, part = self.staging / "tensors", self.staging / "index"
        self._join(tensors, {"stamp": stamp})
        table = pa.Table.from_pylist(self._rows, schema=schema(self.label))
        table = table.replace_schema_metadata({"stamp": stamp, "about": json.dumps(about, sort_keys=True)})
        pq.write_table(table, part)
        _sync(part)
        failures = self.store / FAILURES / file_name(self.number, "jsonl")
        if self.failures:
            lines = [json.dumps({"key": key, "reason": reason}, ensure_ascii=False) for key, reason in self.failures]
            (self.staging / "failures").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            failures.parent.mkdir(exist_ok=True)
            os.replace(self.staging / "failures", failures)
        else:
            failures.unlink(missing_ok=True)
        (self.store / TENSORS).mkdir(exist_ok=True)
        (self.store / INDEX).mkdir(exist_ok=True)
        os.replace(tensors, self.store / TENSORS / file_name(self.number, "safetensors"))
        os.replace(part, self.store / INDEX / file_name(self.number, "parquet"))
        self.close()

    def close(self) -> None:
        """Remove what is not in the store."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        shutil.rmtree(self.staging, ignore_errors=True)

    def _append(self, tensor_name: str, value: Tensor) -> None:
        kind, shape, rows = self._shapes.get(tensor_name, (_TYPES[value.dtype], tuple(value.shape[1:]), 0))
        if shape != tuple(value.shape[1:]):
            raise ValueError(f"{tensor_name} has the shape {tuple(value.shape[1:])} after {shape}: expected one shape")
        if tensor_name not in self._files:
            self._files[tensor_name] = open(self.staging / f"{tensor_name}.bin", "wb")
        self._files[tensor_name].write(_bytes(value))
        self._shapes[tensor_name] = (kind, shape, rows + value.shape[0])

    def _join(self, path: Path, metadata: dict[str, str]) -> None:
        """One safetensors file of the tensors' files: wide numbers first, so that all are aligned, then by name."""
        header: dict[str, Any] = {"__metadata__": metadata}
        start = 0
        order = sorted(self._shapes, key=lambda one: (-_DTYPES[self._shapes[one][0]].itemsize, one))
        for tensor_name in order:
            kind, shape, rows = self._shapes[tensor_name]
            file = self._files[tensor_name]
            file.close()
            size = (self.staging / f"{tensor_name}.bin").stat().st_size
            header[tensor_name] = {"dtype": kind, "shape": [rows, *shape], "data_offsets": [start, start + size]}
            start += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as out:
            out.write(_HEADER.pack(len(text)) + text)
            for tensor_name in order:
                part = self.staging / f"{tensor_name}.bin"
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
                part.unlink()
            out.flush()
            os.fsync(out.fileno())


class ShardReader:
    """The tensors of a shard, memory-mapped.

    Raises:
        ValueError: a file that is missing, truncated or of another store.
    """

    def __init__(self, path: Path, stamp: str):
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            (length,) = _HEADER.unpack_from(self._map)
            header = json.loads(self._map[_HEADER.size : _HEADER.size + length])
            self._tensors = {key: value for key, value in header.items() if key != "__metadata__"}
            self._start = _HEADER.size + length
            end = self._start + max((one["data_offsets"][1] for one in self._tensors.values()), default=0)
            metadata = header.get("__metadata__", {})
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: restore it, or extract the tokens again") from None
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise ValueError(f"{path} is damaged ({error}): restore it, or extract the tokens again") from None
        if len(self._map) != end:
            raise ValueError(
                f"{path} has {len(self._map)} bytes, its header states {end}: it is truncated or damaged; restore it, or "
                "extract the tokens again"
            )
        if metadata.get("stamp") != stamp:
            raise ValueError(f"{path} does not belong to its part of the index: one of the two is of another store")

    def rows(self, tensor_name: str, start: int, count: int) -> Tensor:
        """`count` rows from `start` on, a copy."""
        return self.view(tensor_name)[start : start + count].clone()

    def view(self, tensor_name: str) -> Tensor:
        """All rows, in the mapped memory: pages are read at access."""
        one = self._tensors[tensor_name]
        begin, end = one["data_offsets"]
        if begin == end:
            return torch.empty(one["shape"], dtype=_DTYPES[one["dtype"]])
        flat = torch.frombuffer(self._map, dtype=torch.uint8, count=end - begin, offset=self._start + begin)
        return flat.view(_DTYPES[one["dtype"]]).view(one["shape"])

    @property
    def names(self) -> list[str]:
        return list(self._tensors)


def shard_stamp(stamp: str, keys: Sequence[str]) -> str:
    """16 hex digits of the settings and of a shard's keys."""
    return hashlib.sha256("\0".join([stamp, *keys]).encode()).hexdigest()[:16]


def _bytes(value: Tensor) -> memoryview:
    flat = value.detach().contiguous().flatten().view(torch.uint8).numpy()
    return flat.data


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
