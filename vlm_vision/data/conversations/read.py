"""From the name of a source to its conversations."""

import logging
from collections.abc import Sequence
from pathlib import Path

from vlm_vision.data.conversations.hf_dataset import open_data_set
from vlm_vision.data.conversations.json_file import open_json
from vlm_vision.data.conversations.records import Conversation, Opened, easy_vqa
from vlm_vision.data.conversations.webdataset import left_out_message, open_shards

log = logging.getLogger(__name__)


def read_conversations(source: str, *, images: str = "", split: str = "train") -> Sequence[Conversation]:
    """Conversations of any source, as a sequence with random access. Keys that are not read are in a warning.

    Args:
        source: `easy_vqa`; a `.json` or `.jsonl` file in LLaVA's form; WebDataset shards, `shard-{000000..000009}.tar`; a
            local folder that `datasets` reads; or `hf:owner/name`, `hf:owner/name:subset` on the hub.
        images: folder that image paths start from; default the folder of the JSON file.
        split: split of easy_vqa and of data sets; files have one.

    Raises:
        ValueError: an unknown source, or as the reader of its kind.
    """
    opened = open_conversations(source, images=images, split=split)
    if opened.unread:
        log.warning("%s: %s", source, unread_message(opened))
    if opened.left_out:
        log.warning(left_out_message(opened))
    return list(opened.rows) if opened.in_memory else opened.rows


def open_conversations(source: str, *, images: str = "", split: str = "train") -> Opened:
    """As `read_conversations`, but a bad record raises ValueError only at access."""
    path = Path(source)
    if source == "easy_vqa":
        return Opened(easy_vqa(split))
    if source.startswith("hf:"):
        name, _, subset = source.removeprefix("hf:").partition(":")
        return open_data_set(name, split, subset=subset or None, image_folder=images)
    if path.suffix in (".json", ".jsonl"):
        return open_json(path, images or path.parent)
    if path.suffix == ".tar":
        return open_shards(source)
    if path.is_dir():
        return open_data_set(source, split, subset=None, image_folder=images)
    raise ValueError(
        f"{source!r} is not a source of conversations: expected easy_vqa, a .json or .jsonl file in LLaVA's form, .tar shards, "
        "a folder of a data set, or hf:owner/name"
    )


def unread_message(opened: Opened) -> str:
    """The keys that are not read, with the number of records that have each."""
    keys = ", ".join(f"{key} ({count} records)" for key, count in list(opened.unread.items())[:8])
    return f"not read are the keys {keys}: rename those that training needs"
