"""Patch tokens in our shards, in Lance, in lists of parquet and in one npy file: random access, reading in order, size.

    python -m venv lance && lance/bin/pip install pylance pyarrow numpy torch && lance/bin/pip install --no-deps -e .
    lance/bin/python -m benchmarks.token_formats

Rows are (256, 384) in float16, as of a ViT-S/14 at 224 px. All contestants give the same rows as numpy arrays, from files that are in the
page cache: without a disk that is slower, what is measured is the work of the format.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.peers import import_peer
from benchmarks.timing import interleaved, machine
from vlm_vision.tokens.shard import ShardReader, ShardWriter

TOKENS, WIDTH = 256, 384
SHARD = 1000
"""Images of a shard, a fragment and a row group's file."""


def rows_of(images: int) -> Iterator[np.ndarray]:
    """(TOKENS, WIDTH) each, float16."""
    draw = np.random.default_rng(0)
    for _ in range(images):
        yield draw.standard_normal((TOKENS, WIDTH), dtype=np.float32).astype(np.float16)


class Shards:
    """Ours: a safetensors file beside its part of a parquet index; rows found by the index."""

    def __init__(self, folder: Path, images: int):
        stamp, rows = "0" * 16, rows_of(images)
        for number, start in enumerate(range(0, images, SHARD)):
            writer = ShardWriter(folder, number, stamp=stamp, label="int")
            for i in range(start, min(start + SHARD, images)):
                tensors = {"patch_tokens.-1": torch.from_numpy(next(rows))}
                writer.add(f"{i:07d}.jpg", tensors, grid=(16, 16), frames=1, label=None, caption=None)
            writer.finish({})
        parts = [pq.read_table(path) for path in sorted((folder / "index").glob("*.parquet"))]
        index = pa.concat_tables(parts)
        self.shard, self.offset = index["shard"].to_numpy(), index["offset"].to_numpy()
        self.files = [
            ShardReader(path, part.schema.metadata[b"stamp"].decode())
            for path, part in zip(sorted((folder / "tensors").iterdir()), parts, strict=True)
        ]

    def row(self, at: int) -> np.ndarray:
        return self.files[self.shard[at]].rows("patch_tokens.-1", int(self.offset[at]), TOKENS).numpy()

    def in_order(self) -> Iterator[np.ndarray]:
        for i in range(len(self.shard)):
            yield self.row(i)


class Lance:
    """Lance, a fixed-size list a row."""

    def __init__(self, folder: Path, images: int):
        lance = import_peer("lance")
        kind = pa.list_(pa.float16(), TOKENS * WIDTH)
        schema = pa.schema([("key", pa.string()), ("tokens", kind)])

        def batches() -> Iterator[pa.RecordBatch]:
            for i, row in enumerate(rows_of(images)):
                tokens = pa.FixedSizeListArray.from_arrays(pa.array(row.reshape(-1)), TOKENS * WIDTH)
                yield pa.record_batch([pa.array([f"{i:07d}.jpg"]), tokens], schema=schema)

        self.data = lance.write_dataset(
            pa.RecordBatchReader.from_batches(schema, batches()), str(folder), max_rows_per_file=SHARD
        )

    def row(self, at: int) -> np.ndarray:
        return _flat(self.data.take([at], columns=["tokens"])["tokens"]).reshape(TOKENS, WIDTH)

    def in_order(self) -> Iterator[np.ndarray]:
        for batch in self.data.to_batches(columns=["tokens"], batch_size=64):
            yield from _flat(batch["tokens"]).reshape(-1, TOKENS, WIDTH)


class ParquetLists:
    """A flat list a row, 100 rows in a group, without compression, which shrinks tokens by a few percent only."""

    def __init__(self, folder: Path, images: int):
        folder.mkdir()
        schema, rows, group = (
            pa.schema([("key", pa.string()), ("tokens", pa.list_(pa.float16()))]),
            rows_of(images),
            100,
        )
        for start in range(0, images, SHARD):
            with pq.ParquetWriter(
                folder / f"{start // SHARD:05d}.parquet", schema, compression="none", use_dictionary=False
            ) as writer:
                for first in range(start, min(start + SHARD, images), group):
                    keys = [f"{i:07d}.jpg" for i in range(first, min(first + group, images))]
                    values = pa.array(np.concatenate([next(rows).reshape(-1) for _ in keys]))
                    tokens = pa.ListArray.from_arrays(np.arange(len(keys) + 1, dtype=np.int32) * TOKENS * WIDTH, values)
                    writer.write_table(pa.table([pa.array(keys), tokens], schema=schema), row_group_size=group)
        self.files = [pq.ParquetFile(path) for path in sorted(folder.iterdir())]
        self.group = group

    def row(self, at: int) -> np.ndarray:
        group, place = divmod(at % SHARD, self.group)
        table = self.files[at // SHARD].read_row_group(group, columns=["tokens"])
        return _flat(table["tokens"].slice(place, 1)).reshape(TOKENS, WIDTH)

    def in_order(self) -> Iterator[np.ndarray]:
        for file in self.files:
            for batch in file.iter_batches(batch_size=64, columns=["tokens"]):
                yield from _flat(batch["tokens"]).reshape(-1, TOKENS, WIDTH)


class Npy:
    """One array of all rows, memory-mapped: one grid for all images, no keys, nothing can be added."""

    def __init__(self, folder: Path, images: int):
        folder.mkdir()
        shape = (images, TOKENS, WIDTH)
        array = np.lib.format.open_memmap(folder / "tokens.npy", mode="w+", dtype=np.float16, shape=shape)
        for i, row in enumerate(rows_of(images)):
            array[i] = row
        array.flush()
        self.array = np.load(folder / "tokens.npy", mmap_mode="r")

    def row(self, at: int) -> np.ndarray:
        return np.array(self.array[at])

    def in_order(self) -> Iterator[np.ndarray]:
        for i in range(len(self.array)):
            yield self.row(i)


def _flat(column: Any) -> np.ndarray:
    """Values of a column of lists."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return whole.flatten().to_numpy(zero_copy_only=False)


FORMATS: dict[str, Callable[[Path, int], Any]] = {
    "ours": Shards,
    "Lance": Lance,
    "parquet lists": ParquetLists,
    "npy": Npy,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.token_formats",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--reads", type=int, default=300, help="random rows of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker of a DataLoader
    versions = f"pyarrow {pa.__version__}"
    if "Lance" in options.formats:
        versions += f", pylance {import_peer('lance').__version__}"
    print(f"{machine('cpu')}; {versions}; {options.images} images of {TOKENS} x {WIDTH} float16\n")
    draw = np.random.default_rng(1)
    places = draw.integers(0, options.images, options.reads).tolist()
    with tempfile.TemporaryDirectory() as temporary:
        stores = {
            name: FORMATS[name](Path(temporary) / name.replace(" ", "-"), options.images) for name in options.formats
        }
        sizes = {name: _size(Path(temporary) / name.replace(" ", "-")) for name in stores}
        expected = [row.sum(dtype=np.float64) for row in rows_of(min(20, options.images))]
        for name, store in stores.items():
            assert [store.row(i).sum(dtype=np.float64) for i in range(len(expected))] == expected, name
        one: dict[str, Callable[[], object]] = {
            name: lambda store=store: [store.row(at) for at in places] for name, store in stores.items()
        }
        all_rows: dict[str, Callable[[], object]] = {
            name: lambda store=store: [None for _ in store.in_order()] for name, store in stores.items()
        }
        random = interleaved(one, rounds=options.rounds, device="cpu")
        ordered = interleaved(all_rows, rounds=options.rounds, device="cpu")
    print(
        "| format | one random row, ms | beside ours | all in order, GB/s | bytes / bare tokens |\n|---|---|---|---|---|"
    )
    bare = options.images * TOKENS * WIDTH * 2
    for name in stores:
        took = random[name] / options.reads * 1e3
        beside = random[name] / random[options.formats[0]]
        print(f"| {name} | {took:.3f} | {beside:.1f} | {bare / ordered[name] / 1e9:.2f} | {sizes[name] / bare:.3f} |")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
