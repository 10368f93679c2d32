"""Parquet tables: columns as arrays with one row for each time step."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

UNFINISHED = "a set that was recorded here needs finalize() of lerobot's LeRobotDataset first"
"""Way out for a data set whose recorder did not end as it should."""


class BadRowError(ValueError):
    """A row without a valid value; `row` is its number in the table."""

    def __init__(self, row: int, problem: str):
        super().__init__(problem)
        self.row = row


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A table with the columns in `columns`.

    Raises:
        ValueError: no such file, a damaged one, or a missing column.
    """
    try:
        with open_table(path) as file:
            names = file.schema_arrow.names
            if lacking := [name for name in columns or () if name not in names]:
                raise ValueError(f"{path} has no column {lacking[0]}: it has {', '.join(names)}")
            return file.read(None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(damaged_table_message(path, error)) from None


def open_table(path: Path) -> pq.ParquetFile:
    """Open a file, memory-mapped; checksums of pages are verified."""
    return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)


def damaged_table_message(path: Path, error: Exception) -> str:
    """A sentence on a parquet file that cannot be read."""
    reason = "it does not exist" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
    unfinished = f"; {UNFINISHED}" if "magic bytes" in reason or "footer" in reason else ""
    return f"{path} cannot be read ({reason}): download it again{unfinished}"


def to_array(column: pa.ChunkedArray, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """A column of numbers or (nested) lists of numbers -> (rows, *shape); a column of text -> (rows,) of objects.

    Raises:
        BadRowError: a row without a value, or with more or fewer numbers than `shape`.
        ValueError: a column of another kind.
    """
    if dtype == "string":
        return np.array(column.to_pylist(), dtype=object)
    size, parts, done = math.prod(shape), [], 0
    for chunk in column.chunks:
        flat = chunk
        while True:
            if isinstance(flat, pa.ExtensionArray):
                flat = flat.storage
            if flat.null_count:
                found = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
                per_row = max(len(flat) // max(len(chunk), 1), 1)
                raise BadRowError(done + found // per_row, "has no value")
            if not (pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type) or _is_fixed(flat.type)):
                break
            flat = flat.flatten()
        if len(flat) != size * len(chunk):
            raise BadRowError(done + _uneven(chunk, size), f"does not hold {size} numbers")
        try:
            parts.append(flat.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(len(chunk), *shape))
        except (TypeError, ValueError) as error:
            raise ValueError(f"it holds {flat.type}, expected {dtype} ({error})") from None
        done += len(chunk)
    return np.concatenate(parts) if parts else np.zeros((0, *shape), dtype)


def _is_fixed(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind)


def _uneven(chunk: pa.Array, size: int) -> int:
    """The first row with a number of values other than `size`."""
    return next((row for row, value in enumerate(chunk.to_pylist()) if np.size(value) != size), 0)
