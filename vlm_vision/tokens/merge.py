"""Several stores of the same settings as one."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_vision.files import new_folder, write_json
from vlm_vision.tokens.about import ABOUT, difference, read_about
from vlm_vision.tokens.card import write_store_card
from vlm_vision.tokens.shard import FAILURES, INDEX, TENSORS, file_name, schema, stored_keys


def merge(stores: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Write a new store with the rows of all, in their order. Files of tensors are linked where the disk can, else copied.

    Raises:
        ValueError: fewer than two stores, one that is half written, settings that differ, an image in two of them, or a folder
            `out` that exists.
    """
    if len(stores) < 2:
        raise ValueError(f"{len(stores)} store was passed: expected two or more to merge")
    folders = [Path(store) for store in stores]
    abouts = [read_about(folder) for folder in folders]
    for folder, about in zip(folders, abouts, strict=True):
        if not about["finished"]:
            raise ValueError(f"{folder} is half written: finish it by the command that began it, then merge")
        if found := difference(abouts[0], about):
            raise ValueError(
                f"{folders[0]} and {folder} are of different settings: {found.replace(' here', ' in the other')}"
            )
    keys: dict[str, Path] = {}
    for folder in folders:
        for key in sorted(stored_keys(folder)):
            if key in keys:
                raise ValueError(f"{keys[key]} and {folder} both hold an image {key!r}: a store names each image once")
            keys[key] = folder
    with new_folder(Path(out)) as staging:
        for name in (INDEX, TENSORS):
            (staging / name).mkdir()
        about = _joined(abouts)
        first = 0
        for folder, one in zip(folders, abouts, strict=True):
            for number in range(one["segments"][-1]["first_shard"] + one["segments"][-1]["shards"]):
                _add_shard(folder, number, staging, first + number, about["label"])
            first += one["segments"][-1]["first_shard"] + one["segments"][-1]["shards"]
        write_store_card(staging, about)
        write_json(staging / ABOUT, about)


def _joined(abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    labels = {about["label"] for about in abouts}
    segments, first = [], 0
    for about in abouts:
        segments += [segment | {"first_shard": segment["first_shard"] + first} for segment in about["segments"]]
        first = segments[-1]["first_shard"] + segments[-1]["shards"]
    return abouts[0] | {
        "label": "int" if labels == {"int"} else "str",
        "segments": segments,
        "rows": sum(about["rows"] for about in abouts),
        "failures": sum(about["failures"] for about in abouts),
    }


def _add_shard(store: Path, number: int, out: Path, at: int, label: str) -> None:
    tensors = store / TENSORS / file_name(number, "safetensors")
    target = out / TENSORS / file_name(at, "safetensors")
    try:
        os.link(tensors, target)
    except OSError:
        shutil.copyfile(tensors, target)
    table = pq.read_table(store / INDEX / file_name(number, "parquet"))
    metadata = table.schema.metadata
    table = table.set_column(table.schema.get_field_index("shard"), "shard", pa.array([at] * len(table), pa.int32()))
    pq.write_table(table.cast(schema(label)).replace_schema_metadata(metadata), out / INDEX / file_name(at, "parquet"))
    failures = store / FAILURES / file_name(number, "jsonl")
    if failures.exists():
        (out / FAILURES).mkdir(exist_ok=True)
        shutil.copyfile(failures, out / FAILURES / file_name(at, "jsonl"))
