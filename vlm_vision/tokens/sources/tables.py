"""Tables of text, `.csv`, `.tsv`, `.jsonl` and `.json`, with the path of an image in each row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from vlm_vision.tokens.source import Item, Opened
from vlm_vision.tokens.sources.columns import Choice, Columns, are_whole, caption_text, key_text, label_of
from vlm_vision.tokens.sources.files import file_images, file_items
from vlm_vision.tokens.sources.places import check_list, joined, opened
from vlm_vision.tokens.sources.records import records


@dataclass(frozen=True)
class Table:
    """The images that a table names; the key is the path as in the table, or the id. The table is read twice, in order.

    Args:
        root: folder that the paths start from.
        every: distance of the frames of videos.
    """

    file: str
    root: str
    choice: Choice
    every: int = 1

    def items(self) -> Iterator[Item]:
        with opened(self.file) as file:
            columns, whole = self._survey(file)
            for where, record in records(self.file, file):
                path = _path(record, columns.path, where)
                key = key_text(record.get(columns.id), where) if columns.id else path
                label = label_of(_value(record, columns.label), whole)
                caption = caption_text(_value(record, columns.caption))
                yield from file_items(key, joined(self.root, path), self.every, label, caption)

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        yield from file_images(items)

    def check(self) -> None:
        check_list(self.file, self.root)

    def _survey(self, file: BinaryIO) -> tuple[Columns, bool]:
        """The columns, and whether all labels are whole numbers."""
        known: dict[str, None] = {}
        count = 0
        for _, record in records(self.file, file):
            known.update(dict.fromkeys(record))
            count += 1
            if count == 1 and self.file.lower().endswith((".csv", ".tsv")):
                break
        if not count:
            raise ValueError(f"{self.file} holds no row: expected one for each image")
        columns = Columns.of(list(known), self.choice, self.file)
        labels = (_value(record, columns.label) for _, record in records(self.file, file))
        return columns, bool(columns.label) and are_whole(labels)


def _value(record: dict[str, Any], column: str) -> Any:
    """A value of a column, whose name is empty for none."""
    return record.get(column) if column else None


def _path(record: dict[str, Any], column: str, where: str) -> str:
    path = record.get(column)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{where}, has {path!r} in {column}: expected the path of an image")
    return path
