"""Data sets of the `datasets` library: a folder of `save_to_disk`, a folder that it reads, or a hub id."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vlm_vision.data.conversations.hf_dataset import Cell, is_path, load_data_set, stored_images
from vlm_vision.tokens.source import Item, Opened
from vlm_vision.tokens.sources.columns import Choice, Columns, are_whole, caption_text, key_text, label_of
from vlm_vision.tokens.sources.places import check_place, joined, opened_image

ROWS = 256
"""Rows that are read at once."""


@dataclass(frozen=True)
class DataSet:
    """The images of the rows of one split; a key is the number of the row from 0, or the id where chosen.

    A row with several images has a key for each, `row/0`, `row/1`. A label is what the data set stores: of a ClassLabel the number,
    as the data set itself returns it, not the name; -1 there is no label. Text labels stay text.

    Args:
        local: whether it is a folder on this machine.
        root: folder that images which are paths start from.
    """

    source: str
    split: str
    subset: str | None
    revision: str | None
    local: bool
    root: str
    choice: Choice

    @cached_property
    def _data(self) -> Any:
        return load_data_set(self.source, self.split, self.subset, self.revision)

    @property
    def _columns(self) -> Columns:
        images = [name for name, feature in self._data.features.items() if _is_image(feature)]
        return Columns.of(self._data.column_names, self.choice, f"{self.source}, split {self.split},", images)

    def items(self) -> Iterator[Item]:
        columns, data = self._columns, self._data
        names = list(dict.fromkeys(filter(None, (columns.path, columns.id, columns.label, columns.caption))))
        labels = (value for (value,) in _values(data, [columns.label])) if columns.label else ()
        whole = are_whole(labels)
        is_class = columns.label and hasattr(data.features[columns.label], "names")
        count = 0
        for row, values in enumerate(_values(data.select_columns(names), names, columns.path)):
            record = dict(zip(names, values, strict=True))
            where = f"{self.source}, row {row}"
            key = key_text(record[columns.id], where) if columns.id else str(row)
            label = label_of(record.get(columns.label), whole) if columns.label else None
            label = None if is_class and label == -1 else label
            caption = caption_text(record[columns.caption]) if columns.caption else None
            several = record[columns.path]
            for index in range(several):
                yield Item(key if several == 1 else f"{key}/{index}", str(index), row, label=label, caption=caption)
                count += 1
        if not count:
            raise ValueError(f"{self.source}, split {self.split}, holds no image in {columns.path}")

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        column = self._columns.path
        data = self._data.select_columns([column]).with_format("arrow")
        name, fingerprint = f"{self.source} {self.split}", self._data._fingerprint
        for item in items:
            index = int(item.place)
            cell = stored_images(data[item.start][column][0])[index]
            if is_path(cell):
                yield opened_image(joined(self.root, cell.as_py()))
            else:
                yield Cell(name, fingerprint, item.start, column, index, data)

    def check(self) -> None:
        if self.local:
            check_place(self.source, folder=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_data"}


def _values(data: Any, names: Sequence[str], images: str = "") -> Iterator[tuple[Any, ...]]:
    """Values of columns, row by row; of the column `images` the number of its images, whose bytes are not copied."""
    arrow = data.select_columns(list(names)).with_format("arrow")
    for first in range(0, len(arrow), ROWS):
        table = arrow[first : first + ROWS]
        columns = [
            [len(stored_images(cell)) for cell in table[name]] if name == images else table[name].to_pylist()
            for name in names
        ]
        yield from zip(*columns, strict=True)


def _is_image(feature: Any) -> bool:
    """Whether a feature is an image, or a list of images."""
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    return type(inner).__name__ == "Image"
