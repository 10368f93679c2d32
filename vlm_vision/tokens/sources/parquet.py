"""Parquet tables: the path of an image in each row, or its bytes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from vlm_vision.tokens.source import Item, Opened
from vlm_vision.tokens.sources.columns import Choice, Columns, are_whole, caption_text, key_text, label_of
from vlm_vision.tokens.sources.files import file_images, file_items
from vlm_vision.tokens.sources.places import HeldImage, check_list, joined, opened, opened_image

ROWS, IMAGE_ROWS = 4096, 32
"""Rows that are read at once: of numbers and text, and of images."""


@dataclass(frozen=True)
class Parquet:
    """The images of a table.

    A column of paths is read as that of other tables. A column of bytes, or of {bytes, path} as `datasets` writes, holds the
    images; the key is the id where chosen, else the path next to the bytes, else the number of the row from 0.

    Args:
        root: folder that the paths start from.
        every: distance of the frames of videos that paths name.
    """

    file: str
    root: str
    choice: Choice
    every: int = 1

    def items(self) -> Iterator[Item]:
        with self._opened() as table:
            columns, holds = self._columns(table)
            whole = bool(columns.label) and are_whole(value for (value,) in _rows(table, [columns.label]))
            path = f"{columns.path}.path" if holds == "struct" else columns.path if holds == "path" else ""
            names = [path, columns.id, columns.label, columns.caption]
            count = 0
            for row, (path, key, label, caption) in enumerate(_rows(table, names)):
                where, count = f"{self.file}, row {row}", count + 1
                label, caption = label_of(label, whole), caption_text(caption)
                if holds == "path":
                    if not isinstance(path, str) or not path or "\0" in path:
                        raise ValueError(f"{where}, has {path!r} in {columns.path}: expected the path of an image")
                    name = key_text(key, where) if columns.id else path
                    yield from file_items(name, joined(self.root, path), self.every, label, caption)
                else:
                    name = key_text(key, where) if columns.id else path or str(row)
                    yield Item(name, "", row, label=label, caption=caption)
        if not count:
            raise ValueError(f"{self.file} holds no row: expected one for each image")

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        if not items or items[0].place:
            yield from file_images(items)
            return
        with self._opened() as table:
            columns, _ = self._columns(table)
            cells = _rows(table, [columns.path], first=items[0].start, size=IMAGE_ROWS)
            row = items[0].start
            for item in items:
                cell = next(cells, (None,))[0]
                while row < item.start:
                    cell, row = next(cells, (None,))[0], row + 1
                row += 1
                yield self._image(cell, f"{self.file}, row {item.start}, {columns.path}")

    def check(self) -> None:
        check_list(self.file, self.root)

    def _image(self, cell: Any, where: str) -> Opened:
        held = cell if isinstance(cell, dict) else {"bytes": cell}
        if held.get("bytes"):
            return HeldImage(where, held["bytes"])
        if held.get("path"):
            return opened_image(joined(self.root, held["path"]))
        return ValueError(f"{where} holds no image: expected its bytes, or a path")

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise ImportError(f"{self.file} is read with pyarrow: pip install 'vlm-vision[data]'") from None
        with opened(self.file) as file:
            try:
                with pq.ParquetFile(
                    file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
                ) as table:
                    yield table
            except (OSError, pa.ArrowException) as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"{self.file} cannot be read ({reason}): write or download it again") from None

    def _columns(self, table: Any) -> tuple[Columns, str]:
        """The columns, and what that of the image holds: "path", "bytes" or "struct"."""
        import pyarrow.types as types

        def holds(kind: Any) -> str:
            if types.is_dictionary(kind):
                kind = kind.value_type
            if types.is_struct(kind):
                return "struct" if {"bytes", "path"} <= {field.name for field in kind} else ""
            if types.is_binary(kind) or types.is_large_binary(kind):
                return "bytes"
            return "path" if types.is_string(kind) or types.is_large_string(kind) else ""

        schema = table.schema_arrow
        held = {field.name: holds(field.type) for field in schema}
        images = [name for name, kind in held.items() if kind in ("bytes", "struct")]
        columns = Columns.of(schema.names, self.choice, self.file, images)
        if not held[columns.path]:
            kind = schema.field(columns.path).type
            raise ValueError(f"{self.file} has {kind} in {columns.path}: expected paths, bytes or {{bytes, path}}")
        return columns, held[columns.path]


def _rows(table: Any, names: Sequence[str], *, first: int = 0, size: int = ROWS) -> Iterator[tuple[Any, ...]]:
    """Values of columns from a row on; None for a column without a name. `image.path` is the path in a column image."""
    groups = list(range(table.num_row_groups))
    while groups and first >= (rows := table.metadata.row_group(groups[0]).num_rows):
        first -= rows
        del groups[0]
    read = partial(table.iter_batches, size, groups, [name for name in names if name])
    if not any(names):
        yield from (
            (None,) * len(names) for _ in range(first, sum(table.metadata.row_group(g).num_rows for g in groups))
        )
        return
    for batch in read() if groups else ():
        if first >= len(batch):
            first -= len(batch)
            continue
        columns = [_column(batch, name, first) for name in names]
        yield from zip(*columns, strict=True)
        first = 0


def _column(batch: Any, name: str, first: int) -> list[Any]:
    if not name:
        return [None] * (len(batch) - first)
    if name in batch.schema.names:
        return batch.column(name).slice(first).to_pylist()
    column, _, field = name.rpartition(".")
    return [None if one is None else one[field] for one in batch.column(column).slice(first).to_pylist()]
