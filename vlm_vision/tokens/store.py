"""Reading a token store: by row, by key, in batches."""

import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlm_vision.tokens.about import read_about, stamp_of
from vlm_vision.tokens.numbers import SCALE, from_disk
from vlm_vision.tokens.shard import INDEX, TENSORS, ShardReader, bad_images, file_name, shard_stamp

_OPEN_SHARDS = 64
_NUMBERS = ("shard", "row", "offset", "tokens", "height", "width", "frames")


@dataclass(frozen=True)
class TapTokens:
    """Tokens of one layer; None where they are not stored."""

    patch_tokens: Tensor | None
    """(N, D)"""
    cls_token: Tensor | None
    """(D,)"""
    register_tokens: Tensor | None
    """(R, D)"""


@dataclass(frozen=True)
class Row:
    """One image of a store. `patch_tokens`, `cls_token` and `register_tokens` are those of the first layer asked for."""

    key: str
    grid: tuple[int, int]
    """(h, w) of the patch tokens."""
    frames: int
    """1 for an image; N == frames * h * w, unless a projector made tokens that lie on no grid."""
    taps: dict[int, TapTokens]
    """Layer -> its tokens; the layers as they were asked for."""
    pooled: Tensor | None
    """(E,), the family's own vector."""
    label: int | str | None
    caption: str | None

    @property
    def patch_tokens(self) -> Tensor | None:
        return self._first.patch_tokens

    @property
    def cls_token(self) -> Tensor | None:
        return self._first.cls_token

    @property
    def register_tokens(self) -> Tensor | None:
        return self._first.register_tokens

    @property
    def _first(self) -> TapTokens:
        return next(iter(self.taps.values()))


class TokenStore(Dataset[Row]):
    """Tokens of many images on disk, memory-mapped: `store[0]`, `store["a/cat.jpg"]`, a Dataset of rows.

    It can be pickled; workers of a DataLoader open the files again. A store that is half written holds what is finished, with a
    warning.

    Args:
        folder: as `vlm-vision tokens` or `extract` wrote it.

    Raises:
        ValueError: no store in the folder, or an index that is damaged or of another store.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.about: dict[str, Any] = read_about(self.folder)
        parts = sorted((self.folder / INDEX).glob("*.parquet"), key=lambda part: int(part.stem))
        tables = [_read_part(part, stamp_of(self.about)) for part in parts]
        if not tables:
            raise ValueError(f"{self.folder} has no finished shard: run the command that makes it again")
        if not self.about["finished"]:
            warnings.warn(
                f"{self.folder} is half written, with {len(parts)} shards of "
                f"{sum(segment['shards'] for segment in self.about['segments'])}: run the command that makes it again",
                stacklevel=2,
            )
        self._stamps = {int(part.stem): stamp for part, (_, stamp) in zip(parts, tables, strict=True)}
        table = pa.concat_tables([table for table, _ in tables])
        self._texts = table.select(["key", "label", "caption"]).combine_chunks()
        self._numbers = {name: table[name].to_numpy() for name in _NUMBERS}
        self._check_count(len(table))
        self._shards: OrderedDict[int, ShardReader] = OrderedDict()

    def _check_count(self, rows: int) -> None:
        if self.about["finished"] and rows != self.about["rows"]:
            raise ValueError(
                f"{self.folder} holds {rows} rows, its store.json states {self.about['rows']}: a part of the index is missing or "
                "of another store"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._texts)

    def keys(self) -> list[str]:
        """Keys of all images, in order."""
        return self._texts["key"].to_pylist()

    @property
    def failures(self) -> list[tuple[str, str]]:
        """(key, reason) of each image that could not be read."""
        return list(bad_images(self.folder).items())

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers as they were asked for."""
        return tuple(self.about["settings"]["layers"])

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def index(self, key: str) -> int:
        """Number of the row of a key. Raises KeyError with one sentence."""
        try:
            return self._places[key]
        except KeyError:
            raise KeyError(
                f"{self.folder} has no image {key!r}; its keys are like {self._texts['key'][0].as_py()!r}"
            ) from None

    def __getitem__(self, row: int | str) -> Row:
        """A row by its number, also from the end, or by its key. Raises IndexError or KeyError."""
        at = self._at(row)
        numbers = {name: int(column[at]) for name, column in self._numbers.items()}
        shard = self._shard(numbers["shard"])

        def read(part: str) -> Tensor | None:
            if part not in shard.names:
                return None
            start, count = (numbers["offset"], numbers["tokens"]) if part.startswith("patch_") else (numbers["row"], 1)
            scale = shard.rows(part + SCALE, start, count) if part + SCALE in shard.names else None
            value = from_disk(shard.rows(part, start, count), scale)
            return value if part.startswith("patch_") else value[0]

        taps = {
            layer: TapTokens(*(read(f"{part}.{layer}") for part in ("patch_tokens", "cls_token", "register_tokens")))
            for layer in self.layers
        }
        key, label, caption = (self._texts[name][at].as_py() for name in ("key", "label", "caption"))
        grid = (numbers["height"], numbers["width"])
        return Row(key, grid, numbers["frames"], taps, read("pooled"), label, caption)

    def patch_tokens(self, rows: Sequence[int | str], layer: int | None = None) -> Tensor:
        """(B, N, D) of some rows, in the stored numbers, float32 of int8.

        Raises:
            ValueError: no patch tokens of that layer, or rows with different numbers of tokens.
            KeyError, IndexError: no such row.
        """
        name = f"patch_tokens.{self.layers[0] if layer is None else layer}"
        at = [self._at(row) for row in rows]
        counts = set(self._numbers["tokens"][at].tolist())
        if len(counts) > 1:
            raise ValueError(
                f"rows have {min(counts)} to {max(counts)} tokens: read them one by one, or rows of one grid"
            )
        values = []
        for one in at:
            shard = self._shard(int(self._numbers["shard"][one]))
            if name not in shard.names:
                raise ValueError(f"{self.folder} has no {name}: it has {', '.join(shard.names)}")
            start, count = int(self._numbers["offset"][one]), int(self._numbers["tokens"][one])
            scale = shard.view(name + SCALE)[start : start + count] if name + SCALE in shard.names else None
            values.append(from_disk(shard.view(name)[start : start + count], scale))
        return torch.stack(values)

    def key(self, row: int) -> str:
        """Key of a row."""
        return self._texts["key"][self._at(row)].as_py()

    def grids(self) -> np.ndarray:
        """(len(store), 2): rows and columns of the patch tokens of every image."""
        return np.stack([self._numbers["height"], self._numbers["width"]], axis=1)

    def token_counts(self) -> np.ndarray:
        """(len(store),): patch tokens of every image."""
        return self._numbers["tokens"]

    def shard_numbers(self) -> np.ndarray:
        """(len(store),): number of the shard of every image, in ascending order."""
        return self._numbers["shard"]

    def index_table(self) -> pa.Table:
        """The index, as in the parquet files."""
        columns = {"key": self._texts["key"]} | {name: pa.array(value) for name, value in self._numbers.items()}
        return pa.table(columns | {name: self._texts[name] for name in ("label", "caption")})

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: i for i, key in enumerate(self._texts["key"].to_pylist())}

    def _at(self, row: int | str) -> int:
        if isinstance(row, str):
            return self.index(row)
        at = int(row)
        if not -len(self) <= at < len(self):
            raise IndexError(f"row {at} of {len(self)}")
        return at % len(self)

    def _shard(self, number: int) -> ShardReader:
        if number not in self._shards:
            path = self.folder / TENSORS / file_name(number, "safetensors")
            self._shards[number] = ShardReader(path, self._stamps[number])
            if len(self._shards) > _OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(number)
        return self._shards[number]


def _read_part(path: Path, stamp: str) -> tuple[pa.Table, str]:
    """A part of the index and its stamp."""
    try:
        table = pq.read_table(path)
        found = (table.schema.metadata or {})[b"stamp"].decode()
        keys = table["key"].to_pylist()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is damaged ({' '.join(str(error).split())}): remove it, and extract the tokens again"
        ) from None
    if found != shard_stamp(stamp, keys):
        raise ValueError(f"{path} is a part of the index of another store: remove it, and extract the tokens again")
    return table.replace_schema_metadata(None), found
