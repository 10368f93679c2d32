"""From the name of a source to its conversations."""

from collections.abc import Sequence
from pathlib import Path

from vlm_vision.data.conversations.hf_dataset import hf_dataset
from vlm_vision.data.conversations.records import Conversation, easy_vqa, llava_json
from vlm_vision.data.conversations.webdataset import webdataset


def read_conversations(source: str, *, images: str = "", split: str = "train") -> Sequence[Conversation]:
    """Conversations of any source, as a sequence with random access.

    Args:
        source: `easy_vqa`; a `.json` or `.jsonl` file in LLaVA's form; WebDataset shards, `shard-{000000..000009}.tar`; a
            local folder that `datasets` reads; or `hf:owner/name`, `hf:owner/name:subset` on the hub.
        images: folder that image paths start from; default the folder of the JSON file.
        split: split of easy_vqa and of data sets; files have one.

    Raises:
        ValueError: an unknown source, or as the reader of its kind.
    """
    path = Path(source)
    if source == "easy_vqa":
        return easy_vqa(split)
    if source.startswith("hf:"):
        name, _, subset = source.removeprefix("hf:").partition(":")
        return hf_dataset(name, split, subset=subset or None, image_folder=images)
    if path.suffix in (".json", ".jsonl"):
        return llava_json(path, images or path.parent)
    if path.suffix == ".tar":
        return webdataset(source)
    if path.is_dir():
        return hf_dataset(source, split, image_folder=images)
    raise ValueError(
        f"{source!r} is not a source of conversations: expected easy_vqa, a .json or .jsonl file in LLaVA's form, .tar shards, "
        "a folder of a data set, or hf:owner/name"
    )
