"""Conversations from WebDataset shards: tar files of `key.jpg` with `key.json` or `key.txt`, read by random access.

A shard is indexed by one pass over its headers; then each record is read at its offset, in any order, so that the order
of a run is a function of its seed as with any other data set.
"""

import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from vlm_vision.data.conversations.forms import KEYS, images_first, turns_of
from vlm_vision.data.conversations.records import Conversation, LazyConversations, Opened, checked_conversation
from vlm_vision.data.shards.tar import (
    TarMember,
    expand_pattern,
    members_by_key,
    open_shard,
    read_at,
    with_second_dot,
)

log = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("json", "txt")
_HARMLESS = ("cls", "npy", "pyd", "pkl", "md5", "sha256", "url", "meta", "info", "id", "index")
"""Suffixes that change nothing of the training if they are left out."""

Entry = tuple[str, int, int, int, int, int]
"""A sample: name of the image, offset and size of it and of its text, whether the text is JSON."""


def webdataset(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Sequence[Conversation]:
    """The samples of shards, as img2dataset and the webdataset library write them, made at access.

    A sample is the members of one shard that share a key, their name up to its first dot: an image (`jpg`, `jpeg`, `png`
    or `webp`) and a text. The text is `json` in LLaVA's form ("conversations") or another one of `hf_dataset`, or a caption:
    "caption" of `json`, else `txt`. A caption becomes one turn, the question "<image>" alone, as in LLaVA's first stage
    (Liu et al. 2023). Samples that have no image or no such text are left out, and a warning states their number; so are
    images whose names have a second dot, such as `page.00.jpg`, which would all be of the key `page`.

    Args:
        shards: local tar files; a pattern may have braces, `shard-{000000..000009}.tar`, `{a,b}.tar`, and wildcards.

    Raises:
        ValueError: no such shard, a compressed, damaged or truncated one, one with a member twice, or shards without any
            sample.
    """
    opened = open_shards(shards)
    if opened.left_out:
        log.warning(left_out_message(opened))
    return opened.rows


def left_out_message(opened: Opened) -> str:
    """A sentence on the samples that are left out."""
    total = len(opened.left_out) + len(opened.rows)
    return f"{len(opened.left_out)} of {total} samples left out; the first: {opened.left_out[0]}"


def open_shards(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Opened:
    """As `webdataset`, without the warning."""
    patterns = [shards] if isinstance(shards, str | os.PathLike) else shards
    paths = [path for pattern in patterns for path in expand_pattern(os.fspath(pattern))]
    names, rows, skipped = [], [], []
    unread: Counter[str] = Counter()
    for number, path in enumerate(paths):
        for found in _index(path, unread):
            if isinstance(found, str):
                skipped.append(found)
            else:
                names.append(found[0])
                rows.append((number, *found[1:]))
    if not rows:
        why = f"; {len(skipped)} samples are left out, the first: {skipped[0]}" if skipped else ""
        raise ValueError(
            f"{shards} holds no sample: expected members key.{{{','.join(IMAGES)}}} with key.json or key.txt{why}"
        )
    made = _Samples(tuple(paths), names, np.array(rows, dtype=np.int64))
    return Opened(LazyConversations(made, range(len(rows))), unread, skipped)


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


def _index(path: str, unread: Counter[str]) -> Iterator[Entry | str]:
    """The samples of a shard; for one to leave out, the reason. Suffixes that are not read are counted."""
    with open_shard(path) as file:
        for key, members in members_by_key(path, file).items():
            lost = with_second_dot(members, IMAGES)
            for name in lost:
                yield f"{path}/{name} has a second dot in its name, and a key ends at the first: rename it"
            if not lost or {*members} & {*IMAGES}:
                yield _sample(f"{path}/{key}", path, file, members)
            if not lost:
                unread.update(f"*.{suffix}" for suffix in {*members} - {*IMAGES, *TEXTS, *_HARMLESS})


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
        form = next((key for key in KEYS if key in record), None)
        if form and (form != "question" or {"answer", "answers"} & {*record}):
            turns = turns_of(form, record, name)
            turns = turns if form == "conversations" else images_first(turns, 1)
            return checked_conversation((image,), turns, record.get("type"), name)
        caption = (record.get("caption") or "").strip()
    except (TypeError, KeyError, AttributeError, IndexError, RecursionError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        raise ValueError(f"{name} has a text that is neither LLaVA's JSON nor a caption ({error!r})") from None
    if not caption:
        raise ValueError(f"{name} has an empty caption")
    return checked_conversation((image,), (("<image>", caption),), None, name)
