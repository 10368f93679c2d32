"""Images in the tables, as encoded bytes."""

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm_vision.data.lerobot.tables import damaged_table_message, open_table
from vlm_vision.preprocess.images import load_image

MEMORY = 256 * 2**20
"""Default bytes of encoded images that are kept in memory."""


class Cells:
    """Images in tables, decoded at access. A table is read one row group at a time; the last groups are kept.

    Args:
        limit: bytes of groups to keep. Random order needs all groups in memory; otherwise one is read for every image.
    """

    def __init__(self, limit: int = MEMORY):
        self.limit = limit
        self._files: OrderedDict[Path, tuple[pq.ParquetFile, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[tuple[Path, str, int], Any] = OrderedDict()
        self._held = 0

    def image(self, path: Path, column: str, row: int) -> np.ndarray:
        """uint8 (H, W, 3) RGB.

        Raises:
            ValueError: a damaged table, or no image in that row.
        """
        try:
            file, ends = self._file(path)
            group = int(np.searchsorted(ends, row, side="right"))
            cell = self._group(path, file, column, group)[row - (int(ends[group - 1]) if group else 0)]
        except (OSError, pa.ArrowException) as error:
            raise ValueError(damaged_table_message(path, error)) from None
        held = cell.as_py()
        data = held.get("bytes") if isinstance(held, dict) else held
        if not isinstance(data, bytes):
            raise ValueError(f"{path} holds no image there: embed the images in the tables")
        try:
            return np.asarray(load_image(Image.open(io.BytesIO(data))))
        except Exception as error:  # on damaged bytes Pillow's decoders raise almost any type
            raise ValueError(f"{path} holds no image there that can be decoded ({error})") from None

    def _file(self, path: Path) -> tuple[pq.ParquetFile, np.ndarray]:
        if path not in self._files:
            file = open_table(path)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._files[path] = file, np.cumsum(sizes)
            if len(self._files) > 16:
                self._files.popitem(last=False)[1][0].close()
        self._files.move_to_end(path)
        return self._files[path]

    def _group(self, path: Path, file: pq.ParquetFile, column: str, group: int) -> Any:
        key = path, column, group
        if key not in self._groups:
            if column not in file.schema_arrow.names:
                raise ValueError(f"{path} has no column {column}: it has {', '.join(file.schema_arrow.names)}")
            self._groups[key] = found = file.read_row_group(group, columns=[column])[column]
            self._held += found.nbytes
            while self._held > self.limit and len(self._groups) > 1:
                self._held -= self._groups.popitem(last=False)[1].nbytes
        self._groups.move_to_end(key)
        return self._groups[key]

    def __reduce__(self) -> tuple[type["Cells"], tuple[int]]:
        return type(self), (self.limit,)
