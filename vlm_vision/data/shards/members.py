"""Content of a shard, a tar file of `key.jpg` with `key.json`, `key.txt`, `key.cls`, as img2dataset writes them."""

import json
from collections.abc import Mapping
from tarfile import TarInfo
from typing import BinaryIO, NamedTuple

from vlm_vision.data.conversations.webdataset import IMAGES
from vlm_vision.data.sample import caption_of
from vlm_vision.data.shards.tar import TarMember, read_at, with_second_dot


class SampleOffsets(NamedTuple):
    """Offsets of a sample in its shard, in bytes; a missing member has size 0."""

    image: int
    image_size: int
    json: int
    json_size: int
    text: int
    text_size: int
    label: int
    label_size: int


def index_of(samples: Mapping[str, Mapping[str, TarInfo]]) -> tuple[list[str], list[SampleOffsets], list[str]]:
    """Names of the images and offsets of the samples of a shard; keys without an image, and
    images whose names have a second dot."""
    names, places, without = [], [], []
    for key, members in samples.items():
        image = next((members[suffix] for suffix in IMAGES if suffix in members), None)
        lost = with_second_dot(members, IMAGES)
        without += [f"{name} (its name has a second dot)" for name in lost]
        if image is None:
            without += [] if lost else [key]
            continue
        others = [members.get(suffix) for suffix in ("json", "txt", "cls")]
        found = [number for one in (image, *others) for number in ((one.offset_data, one.size) if one else (0, 0))]
        names.append(image.name)
        places.append(SampleOffsets(*found))
    return names, places, without


def caption_at(file: BinaryIO, places: SampleOffsets, image: TarMember) -> str:
    """ "caption" of the JSON, else the text; empty where both are missing or damaged."""
    try:
        record = json.loads(read_at(file, places.json, places.json_size, image)) if places.json_size else None
    except (ValueError, RecursionError):
        record = None
    caption = caption_of(record.get("caption")) if isinstance(record, dict) else ""
    return caption or read_at(file, places.text, places.text_size, image).decode("utf-8-sig", errors="ignore").strip()


def label_at(file: BinaryIO, places: SampleOffsets, image: TarMember) -> str | None:
    """The text of its class; None for none."""
    if not places.label_size:
        return None
    return read_at(file, places.label, places.label_size, image).decode(errors="replace").strip()
