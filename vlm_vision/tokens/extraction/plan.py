"""The list of a source's images on disk, shard by shard, so that every process and every resumed run has the same one."""

import hashlib
import json
import os
from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_vision.tokens.source import Item

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("place", pa.string()),
        ("start", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.string()),
        ("caption", pa.string()),
    ]
)
"""A label is its JSON text, so that numbers and texts share a column."""


@dataclass(frozen=True)
class Listing:
    """What is known of the images of a source without reading them."""

    count: int
    digest: str
    """16 hex digits of the keys in order."""
    label: str
    """"int" where there are labels and all are whole numbers, "str" where there are others, empty for none."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def write_plan(path: Path, items: Iterable[Item], *, shard_images: int, known: Collection[str] = ()) -> Listing:
    """List the images whose keys are not `known` in `path`, a parquet file with one row group for each shard.

    Raises:
        ValueError: a key that occurs twice, or an empty key.
    """
    staging = path.with_suffix(".new")
    count, digest, hashes, labels = 0, hashlib.sha256(), array("Q"), set[type]()
    try:
        with pq.ParquetWriter(staging, _SCHEMA) as writer:
            for group in _groups((item for item in items if item.key not in known), shard_images):
                for item in group:
                    if not item.key:
                        raise ValueError(f"an image at {item.place or 'row ' + str(item.start)} has an empty key")
                    labels.add(type(item.label))
                    key = item.key.encode(errors="surrogatepass")
                    digest.update(key + b"\0")
                    hashes.append(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))
                rows = [asdict(item) | {"label": json.dumps(item.label)} for item in group]
                writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
                count += len(group)
        _check_unique(staging, hashes)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    return Listing(count, digest.hexdigest()[:16], "str" if str in labels else "int" if int in labels else "")


def read_plan(path: Path, shard: int) -> list[Item]:
    """The images of a shard, numbered in the plan from 0."""
    table = pq.ParquetFile(path).read_row_group(shard)
    return [Item(**row | {"label": json.loads(row["label"])}) for row in table.to_pylist()]


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def _check_unique(path: Path, hashes: "array[int]") -> None:
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    twice = set(values[counts > 1].tolist())
    if not twice:
        return
    seen: dict[str, str] = {}
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        for row in file.read_row_group(group, columns=["key", "place"]).to_pylist():
            key = row["key"]
            if int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") not in twice:
                continue
            if key in seen:
                raise ValueError(
                    f"two images have the key {key!r}, in {seen[key] or 'the source'} and {row['place'] or 'the source'}: "
                    "a store names each image once; list it once, or put the sources into separate stores"
                )
            seen[key] = row["place"]
