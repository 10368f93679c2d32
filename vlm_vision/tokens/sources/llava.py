"""Images of LLaVA's JSON: a list of {"image", "conversations"}, or one such record in each line of a `.jsonl`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_vision.data.conversations.forms import llava_turns
from vlm_vision.tokens.source import Item, Opened
from vlm_vision.tokens.sources.files import file_images
from vlm_vision.tokens.sources.places import check_list, joined, opened
from vlm_vision.tokens.sources.records import records


@dataclass(frozen=True)
class LlavaJson:
    """Each image once, however many records name it, in the order of the file; the key is its path as in the file, the caption
    the first answer of the first record that names it. Records without an image are left out. The paths are in memory.

    Args:
        root: folder that the paths start from.
    """

    file: str
    root: str

    def items(self) -> Iterator[Item]:
        seen: set[str] = set()
        with opened(self.file) as file:
            for where, record in records(self.file, file):
                images = _images(record, where)
                new = [image for image in dict.fromkeys(images) if image not in seen]
                if new:
                    answer = _answer(record, where)
                    seen.update(new)
                    yield from (Item(image, joined(self.root, image), caption=answer) for image in new)
        if not seen:
            raise ValueError(f"{self.file} names no image: expected records with image and conversations")

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        yield from file_images(items)

    def check(self) -> None:
        check_list(self.file, self.root)


def _images(record: dict[str, Any], where: str) -> list[str]:
    images = record.get("image") or []
    listed = images if isinstance(images, list) else [images]
    if not all(isinstance(image, str) and image for image in listed):
        raise ValueError(f"{where}, has {images!r} as image: expected a path or a list of paths")
    return listed


def _answer(record: dict[str, Any], where: str) -> str | None:
    try:
        return llava_turns(record, where)[0][1].strip() or None
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}, is not in LLaVA's form ({error!r}): expected image and conversations") from None
