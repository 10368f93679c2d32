"""A store in the formats of other tools: WebDataset shards, parquet lists, numpy arrays."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vlm_vision.files import new_folder
from vlm_vision.tokens.store import Row, TokenStore


def export(store: TokenStore, format: str, out: str | os.PathLike[str]) -> None:
    """Write a copy of a store to a new folder. bfloat16 becomes float32, int8 float32, as numpy and parquet lack them.

    Args:
        format: "webdataset": a tar file for each shard, of NNNNNNNNN.json (key, grid, frames, label, caption) and one
            NNNNNNNNN.NAME.npy for each tensor of an image. "parquet": a file for each shard, whose tensors are flat lists with
            columns of their shapes. "numpy": one array for each tensor, (images, N, D) where all images have one number of
            tokens, else (tokens, D), with index.parquet.

    Raises:
        ValueError: another format, or a folder that exists.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}: expected one of {', '.join(FORMATS)}")
    with new_folder(Path(out)) as staging:
        FORMATS[format](store, staging)


def _webdataset(store: TokenStore, folder: Path) -> None:
    for shard, rows in _by_shard(store):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for at in rows:
                row = store[at]
                about = {
                    "key": row.key,
                    "grid": row.grid,
                    "frames": row.frames,
                    "label": row.label,
                    "caption": row.caption,
                }
                _add(tar, f"{at:09d}.json", json.dumps(about, ensure_ascii=False).encode())
                for name, value in _tensors(row):
                    data = io.BytesIO()
                    np.save(data, value.numpy(), allow_pickle=False)
                    _add(tar, f"{at:09d}.{name}.npy", data.getvalue())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _parquet(store: TokenStore, folder: Path) -> None:
    for shard, rows in _by_shard(store):
        writer = None
        for at in rows:
            row = store[at]
            columns = {"key": [row.key], "height": [row.grid[0]], "width": [row.grid[1]], "frames": [row.frames]}
            table = pa.table(
                columns
                | {"label": pa.array([row.label], _label(store)), "caption": pa.array([row.caption], pa.string())}
                | {name: pa.array([value.flatten().numpy()]) for name, value in _tensors(row)}
                | {f"{name}.shape": [list(value.shape)] for name, value in _tensors(row)}
            )
            writer = writer or pq.ParquetWriter(folder / f"{shard:05d}.parquet", table.schema)
            writer.write_table(table)
        if writer:
            writer.close()


def _label(store: TokenStore) -> pa.DataType:
    return pa.int64() if store.about["label"] == "int" else pa.string()


def _numpy(store: TokenStore, folder: Path) -> None:
    counts = store.token_counts()
    same = len(np.unique(counts)) == 1
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for at in range(len(store)):
        row = store[at]
        for name, value in _tensors(row):
            flat = name.startswith("patch_tokens.") and not same
            if name not in arrays:
                shape = (int(counts.sum()), value.shape[1]) if flat else (len(store), *value.shape)
                dtype = value.numpy().dtype
                arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            arrays[name][slice(offset, offset + value.shape[0]) if flat else at] = value.numpy()
        offset += int(counts[at])
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]
    pq.write_table(store.index_table(), folder / "index.parquet")


FORMATS: dict[str, Callable[[TokenStore, Path], None]] = {
    "webdataset": _webdataset,
    "parquet": _parquet,
    "numpy": _numpy,
}


def _by_shard(store: TokenStore) -> Iterator[tuple[int, range]]:
    numbers, starts, counts = np.unique(store.shard_numbers(), return_index=True, return_counts=True)
    for number, start, count in zip(numbers.tolist(), starts.tolist(), counts.tolist(), strict=True):
        yield number, range(start, start + count)


def _tensors(row: Row) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each tensor of an image, in a dtype that numpy has."""
    for layer, tap in row.taps.items():
        for part in ("patch_tokens", "cls_token", "register_tokens"):
            if (value := getattr(tap, part)) is not None:
                yield f"{part}.{layer}", value.float() if value.dtype == torch.bfloat16 else value
    if row.pooled is not None:
        yield "pooled", row.pooled.float() if row.pooled.dtype == torch.bfloat16 else row.pooled
