"""Conversations from a JSON or JSON-lines file, in LLaVA's form or another one of `forms`."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_vision.data.conversations.forms import (
    IMAGES,
    check_media,
    form_of,
    images_first,
    images_in_parts,
    turns_of,
    unread_keys,
)
from vlm_vision.data.conversations.records import Conversation, LazyConversations, Opened, checked_conversation


def llava_json(file: str | Path, image_folder: str | Path) -> list[Conversation]:
    """Read LLaVA's format: a list of {"id", "image", "conversations": [{"from": "human"|"gpt", "value"}]}.

    "image" or "images" may be one path, a list, or absent (text only); "type" is an optional type of question. Roles may
    be user and assistant too, and a system turn goes before the first question. A record may also have the other
    forms of `hf_dataset`: texts, messages, or question with answer. A `.jsonl` file has one record in each line.

    Raises:
        ValueError: no such file, no JSON list, turns that do not alternate, other numbers of placeholders and images, or
            images under another key.
    """
    return list(open_json(file, image_folder).rows)


def open_json(file: str | Path, image_folder: str | Path) -> Opened:
    """As `llava_json`, with records made at access: a bad one raises ValueError there."""
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"there is no file {file}: expected a JSON list of conversations")
    records = read_records(file)
    rows = LazyConversations(_JsonRows(records, file.name, str(image_folder)), range(len(records)))
    return Opened(rows, unread_keys(records), in_memory=True)


def read_records(file: Path) -> list[Any]:
    """The records of a file. Raises ValueError for one that is no JSON list, or has a line that is not valid JSON."""
    if file.suffix == ".jsonl":
        lines = enumerate(file.read_bytes().split(b"\n"), start=1)
        records = [_json(line, f"{file}, line {i},") for i, line in lines if line.strip()]
    else:
        records = _json(file.read_bytes(), str(file))
    if not isinstance(records, list) or not records:
        raise ValueError(f"{file} holds no JSON list of conversations")
    return records


def _json(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({error}): expected a list of conversations") from None


@dataclass(frozen=True, eq=False)
class _JsonRows:
    """Row -> conversation."""

    records: list[Any]
    file: str
    image_folder: str

    def __call__(self, row: int) -> Conversation:
        record = self.records[row]
        is_record = isinstance(record, Mapping)
        name = f"{self.file}, record {record.get('id', row) if is_record else row}"
        try:
            if not is_record:
                raise TypeError(f"a {type(record).__name__}")
            form = form_of(record, name)
            paths = tuple(os.path.join(self.image_folder, image) for image in _images(record, name))
            if not paths:
                check_media(record, name)
            turns = turns_of(form, record, name)
            turns = turns if form == "conversations" else images_first(turns, len(paths))
            return checked_conversation(paths, turns, record.get("type"), name)
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{name} is not in LLaVA's form ({error!r}): expected id, image and conversations"
            ) from None


def _images(record: Mapping[str, Any], name: str) -> list[str]:
    """Paths of a record. Raises ValueError for images that are no paths."""
    keys = [key for key in IMAGES if record.get(key)]
    if len(keys) > 1:
        raise ValueError(f"{name} has image and images: expected one of them, remove the other")
    images = record[keys[0]] if keys else images_in_parts(record)
    if not isinstance(images, str | list):
        raise ValueError(f"{name} has a {type(images).__name__} as image: expected a path or a list of paths")
    images = [images] if isinstance(images, str) else images
    for image in images:
        if not isinstance(image, str):
            raise ValueError(f"{name} has a {type(image).__name__} among its images: expected paths")
        if "\0" in image or image.startswith(("http://", "https://", "data:")):
            raise ValueError(f"{name} has the image {image[:60]!r}, which is no path: save it as a file")
    return images
