"""Conversations from WebDataset shards: tar files of `key.jpg` with `key.json` or `key.txt`, read by random access.

A shard is indexed by one pass over its headers; then each record is read at its offset, in any order, so that the order
of a run is a function of its seed as with any other data set.
"""

import json
import logging
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from vlm_vision.data.conversations.records import Conversation, LazyConversations, checked_conversation, llava_turns
from vlm_vision.data.shards.tar import TarMember, expand_pattern, members_by_key, open_shard, read_at

log = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("json", "txt")

Entry = tuple[str, int, int, int, int, int]
"""A sample: name of the image, offset and size of it and of its text, whether the text is JSON."""


def webdataset(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Sequence[Conversation]:
    """The samples of shards, as img2dataset and the webdataset library write them, made at access.

    A sample is the members of one shard that share a key, their name up to its first dot: an image (`jpg`, `jpeg`, `png`
    or `webp`) and a text. The text is `json` in LLaVA's form ("conversations"), or a caption: "caption" of `json`, else
    `txt`. A caption becomes one turn, the question "<image>" alone, as in LLaVA's first stage (Liu et al. 2023). Samples
    that have no image or no such text are left out, and a warning states their number.

    Args:
        shards: local tar files; a pattern may have braces, `shard-{000000..000009}.tar`, `{a,b}.tar`, and wildcards.

    Raises:
        ValueError: no such shard, a compressed, damaged or truncated one, or shards without any sample.
    """
    patterns = [shards] if isinstance(shards, str | os.PathLike) else shards
    paths = [path for pattern in patterns for path in expand_pattern(os.fspath(pattern))]
    names, rows, skipped = [], [], []
    for number, path in enumerate(paths):
        for found in _index(path):
            if isinstance(found, str):
                skipped.append(found)
            else:
                names.append(found[0])
                rows.append((number, *found[1:]))
    if skipped:
        log.warning("%d of %d samples left out; the first: %s", len(skipped), len(skipped) + len(rows), skipped[0])
    if not rows:
        raise ValueError(
            f"{shards} holds no sample: expected members key.{{{','.join(IMAGES)}}} with key.json or key.txt"
        )
    return LazyConversations(_Samples(tuple(paths), names, np.array(rows, dtype=np.int64)), range(len(rows)))


@dataclass(frozen=True, eq=False)
class _Samples:
    """Row -> conversation. A row of `table` is the number of the shard, then an `Entry` without its name."""

    shards: tuple[str, ...]
    names: list[str]
    table: np.ndarray

    def __call__(self, row: int) -> Conversation:
        shard, offset, size, text_offset, text_size, is_json = self.table[row].tolist()
        image = TarMember(self.shards[shard], self.names[row], offset, size)
        with open_shard(image.shard) as file:
            return _conversation(read_at(file, text_offset, text_size, image), bool(is_json), image)


def _index(path: str) -> list[Entry | str]:
    """The samples of a shard; for one to leave out, the reason."""
    with open_shard(path) as file:
        return [_sample(f"{path}/{key}", path, file, members) for key, members in members_by_key(path, file).items()]


def _sample(name: str, path: str, file: BinaryIO, members: dict[str, tarfile.TarInfo]) -> Entry | str:
    image = next((members[suffix] for suffix in IMAGES if suffix in members), None)
    if image is None:
        return f"{name} has no image"
    shown = TarMember(path, image.name, image.offset_data, image.size)
    problem = f"{name} has no text"
    for suffix in TEXTS:
        if text := members.get(suffix):
            try:
                _conversation(read_at(file, text.offset_data, text.size, shown), suffix == "json", shown)
            except ValueError as error:
                problem = str(error)
            else:
                return shown.name, shown.offset, shown.size, text.offset_data, text.size, int(suffix == "json")
    return problem


def _conversation(text: bytes, is_json: bool, image: TarMember) -> Conversation:
    """The turns of a text. Raises ValueError for one that is neither a conversation nor a caption."""
    name = str(image)
    try:
        record = json.loads(text) if is_json else {"caption": text.decode("utf-8-sig")}
        if "conversations" in record:
            return checked_conversation((image,), llava_turns(record, name), record.get("type"), name)
        caption = (record.get("caption") or "").strip()
    except (TypeError, KeyError, AttributeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{name} has a text that is neither LLaVA's JSON nor a caption ({error!r})") from None
    if not caption:
        raise ValueError(f"{name} has an empty caption")
    return checked_conversation((image,), (("<image>", caption),), None, name)
