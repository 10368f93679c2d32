"""Parquet files in the form that lerobot expects."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_vision.data.lerobot.layout import Feature, next_place

_ROW_GROUP = 4 * 2**20
"""Bytes that a reader loads for one image."""

_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


class RollingTables:
    """Tables one after another in files; a new one begins before one gets too large.

    Args:
        pattern: path of a file, by chunk_index and file_index.
        limit: most bytes of a file.
        chunks_size: files of a folder.
    """

    def __init__(self, folder: Path, pattern: str, *, limit: float, chunks_size: int):
        self.folder, self.pattern, self.limit, self.chunks_size = folder, pattern, limit, chunks_size
        self.paths: list[Path] = []
        self._place = (0, 0)
        self._sink: Any = None
        self._writer: pq.ParquetWriter | None = None

    def place(self, size: int) -> tuple[int, int]:
        """Chunk and file that a table of this many bytes goes to."""
        if self._sink is not None and self._sink.tell() + size > self.limit:
            self.close()
            self._place = next_place(*self._place, self.chunks_size)
        return self._place

    def add(self, table: pa.Table) -> tuple[int, int]:
        """Append a table; the chunk and file that it is in."""
        place = self.place(table.nbytes)
        if self._writer is None:
            path = self.folder / self.pattern.format(chunk_index=place[0], file_index=place[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            self.paths.append(path)
            self._sink = open(path, "wb")
            self._writer = pq.ParquetWriter(self._sink, table.schema, write_page_checksum=True)
        rows = max(1, table.num_rows * _ROW_GROUP // max(table.nbytes, 1))
        self._writer.write_table(table, row_group_size=min(rows, max(table.num_rows, 1)))
        return place

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
        self._writer = self._sink = None


def data_table(
    features: Mapping[str, Feature], numbers: Mapping[str, np.ndarray], images: Mapping[str, Sequence[bytes]]
) -> pa.Table:
    """The time steps of an episode: numbers (T, *shape), encoded images; with the metadata of `datasets`."""
    columns, described = {}, {}
    for name, feature in features.items():
        if feature.dtype == "video":
            continue
        if feature.dtype == "image":
            paths = pa.array([f"frame-{i:06d}.png" for i in range(len(images[name]))])
            columns[name] = pa.StructArray.from_arrays(
                [pa.array(images[name], pa.binary()), paths], fields=list(_IMAGE)
            )
            described[name] = {"_type": "Image"}
            continue
        values = pa.array(numbers[name].reshape(-1))
        described[name] = {"dtype": feature.dtype, "_type": "Value"}
        if feature.shape != (1,):
            values = pa.FixedSizeListArray.from_arrays(values, feature.shape[0])
            described[name] = {"feature": described[name], "length": feature.shape[0], "_type": "Sequence"}
        columns[name] = values
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": described}})})


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """task_index by task, the index of a pandas table without a name."""
    index = "__index_level_0__"
    kinds = {"task_index": ("int64", "int64"), index: ("unicode", "object")}
    columns = [
        {
            "name": None if name == index else name,
            "field_name": name,
            "pandas_type": kind,
            "numpy_type": numpy,
            "metadata": None,
        }
        for name, (kind, numpy) in kinds.items()
    ]
    unnamed = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    about = {"index_columns": [index], "column_indexes": [unnamed], "columns": columns, "pandas_version": "2.2.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(list(tasks), pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(about)})
