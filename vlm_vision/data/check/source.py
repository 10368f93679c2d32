"""From the name of a source to a check of it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vlm_vision.data.check.conversations import check_conversations
from vlm_vision.data.check.images import check_samples
from vlm_vision.data.check.report import DataReport
from vlm_vision.data.conversations.forms import KEYS
from vlm_vision.data.conversations.read import open_conversations
from vlm_vision.data.images.samples import read_samples

Kind = Literal["conversations", "images", "robot"]


def kind_of(source: str) -> Kind:
    """What a source holds: robot data, conversations, or images with captions or labels.

    A table of images is a .csv file, or a .jsonl file whose first record has none of the forms of conversations.
    """
    path = Path(source)
    if (path / "meta" / "info.json").is_file():
        return "robot"
    if "://" in source or path.suffix == ".csv":
        return "images"
    if path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as file:
            first = file.readline()
            return "conversations" if any(f'"{key}"'.encode() in first for key in KEYS) else "images"
    tables = ("dataset_dict.json", "state.json", "metadata.*", "*.parquet", "*/*.parquet", "*.arrow")
    if path.is_dir() and not any(found for pattern in tables for found in path.glob(pattern)):
        return "images"
    return "conversations"


def check_source(
    source: str, kind: Kind, *, images: str = "", split: str = "train", decode: bool = False
) -> DataReport:
    """A check of conversations, or at images; robot data have `check_robot`.

    Raises:
        ValueError: a source that cannot be opened at all.
    """
    if kind == "conversations":
        opened = open_conversations(source, images=images, split=split)
        return check_conversations(source, opened, decode=decode)
    return check_samples(source, read_samples(source, split, images=images), decode=decode)


def state_of(source: str, settings: Mapping[str, Any]) -> str:
    """16 hex digits that change with the files of a source, by their sizes and times, and with the settings of the check."""
    path = Path(source).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
    stats = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files if (stat := file.stat())]
    described = json.dumps([source, dict(settings), stats], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]
