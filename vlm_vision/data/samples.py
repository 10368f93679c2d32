"""Pictures with captions, with labels, or alone: the record that all sources of pretraining are read to."""

import csv
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from vlm_vision.data.easy_vqa import described
from vlm_vision.data.hf_dataset import Cell, is_path, load_data_set, stored_pictures
from vlm_vision.data.stored import Picture
from vlm_vision.data.webdataset import PICTURES, TarMember, matching, members_by_key, open_shard, read_at

log = logging.getLogger(__name__)

COLUMNS = {"picture": ("picture", "image"), "caption": ("caption", "text"), "label": ("label",)}
"""What a table may call each; the first that is there is taken."""
SUFFIXES = (*(f".{suffix}" for suffix in PICTURES), ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff")
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


@dataclass(frozen=True)
class Sample:
    """A picture and what is said of it."""

    picture: Picture
    caption: str = ""
    """Empty: there is none."""
    label: int = -1
    """Place of its class in `Samples.classes`; -1: there is none."""
    name: str = ""
    """What to call it in an error."""


class Samples(Sequence[Sample]):
    """Samples that are made when asked for: of shards and data sets only the places are held in memory.

    A slice is another such sequence. Pickles with its `make`, for the workers of a DataLoader.

    Args:
        make: row -> its sample.
        rows: which rows, in which order.
        classes: names of the labels, in order; empty where there are none.
    """

    def __init__(self, make: Callable[[int], Sample], rows: Sequence[int], classes: tuple[str, ...] = ()):
        self.make, self.rows, self.classes = make, rows, classes

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(self.make, self.rows[index], self.classes)
        return self.make(self.rows[index])

    def with_classes(self, classes: tuple[str, ...]) -> "Samples":
        """The same samples labelled by their place in `classes`: a test split by those of its training split.

        Raises:
            ValueError: `classes` lacks one of theirs.
        """
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise ValueError(f"class {unknown[0]!r} is none of the {len(classes)} expected: use splits of one data set")
        return Samples(_Relabelled(self.make, tuple(map(classes.index, self.classes))), self.rows, classes)


@dataclass(frozen=True)
class _Relabelled:
    make: Callable[[int], Sample]
    labels: tuple[int, ...]

    def __call__(self, row: int) -> Sample:
        sample = self.make(row)
        return sample if sample.label < 0 else replace(sample, label=self.labels[sample.label])


def read_samples(source: str, split: str = "train", *, images: str = "") -> Samples:
    """Whatever holds pictures, as a sequence with random access.

    Args:
        source: one of
            a folder of class folders, as ImageNet's, whose sorted names are the classes, or a folder of pictures; where all its
            folders are named as splits, train, val, test, the one of `split` is read;
            a `.csv` or `.jsonl` file with the columns picture (or image), caption (or text), label, of which only the first
            must be there; labels are names of classes or numbers from 0;
            WebDataset shards, `shard-{000000..000009}.tar`, or a folder of them, as img2dataset writes them: `key.jpg` (png,
            webp) with "caption" of `key.json`, else `key.txt`, and a number in `key.cls`;
            a folder that `datasets` reads, `hf:owner/name` or `hf:owner/name:subset`, with columns as a `.csv` file;
            `easy_vqa`, whose captions and classes ("blue circle") are measured in the pictures.
        split: of easy_vqa, of data sets, and of folders that have it; other sources hold one.
        images: folder that picture paths start from; default the folder of the file.

    Raises:
        ValueError: it is none of these, damaged, empty, or its labels are no classes.
    """
    path = Path(source)
    if source == "easy_vqa":
        return _easy_vqa(split)
    if source.startswith("hf:"):
        name, _, subset = source.removeprefix("hf:").partition(":")
        return _data_set(name, split, subset or None, images)
    if path.suffix == ".tar":
        return _shards(matching(source))
    if path.suffix in (".csv", ".jsonl"):
        return _table(path, Path(images or path.parent))
    if not path.is_dir():
        raise ValueError(
            f"{source!r} is no source of pictures: expected a folder, a .csv or .jsonl file, .tar shards, hf:owner/name or easy_vqa"
        )
    if shards := sorted(map(str, path.glob("*.tar"))):
        return _shards(shards)
    tables = ("dataset_dict.json", "state.json", "metadata.*", "*.parquet", "*/*.parquet", "*.arrow")
    if any(found for pattern in tables for found in path.glob(pattern)):
        return _data_set(source, split, None, images)
    return _folder(path, split)


@dataclass(frozen=True, eq=False)
class _Listed:
    """Row -> sample, of files listed in memory."""

    folder: str
    pictures: list[str]
    labels: np.ndarray
    captions: list[str]
    """Empty: there are none."""
    source: str
    """Names the samples by row; empty: by their path."""

    def __call__(self, row: int) -> Sample:
        picture = os.path.join(self.folder, self.pictures[row])
        name = f"{self.source}, record {row + 1}" if self.source else picture
        return Sample(picture, self.captions[row] if self.captions else "", int(self.labels[row]), name)


def _folder(folder: Path, split: str) -> Samples:
    inside = _folders(folder)
    if inside and set(inside) <= SPLITS | {split}:
        if split not in inside:
            raise ValueError(f"{folder} has the splits {', '.join(inside)}: expected one of them, not {split!r}")
        folder, inside = folder / split, _folders(folder / split)
    own = sorted(entry.name for entry in os.scandir(folder) if _is_picture(entry.name) and entry.is_file())
    held = {name: _pictures_under(folder, name) for name in inside}
    if own and any(held.values()):
        raise ValueError(f"{folder} holds both pictures and folders of pictures: expected one of the two")
    if own:
        held = {}
    if empty := [name for name, pictures in held.items() if not pictures]:
        raise ValueError(f"class folder {folder / empty[0]} holds no picture: fill or remove it")
    pictures = own or [picture for pictures in held.values() for picture in pictures]
    if not pictures:
        raise ValueError(f"{folder} holds no picture: expected {', '.join(SUFFIXES)}, in it or in class folders")
    labels = np.repeat(np.arange(len(held)), [len(each) for each in held.values()]) if held else np.full(len(own), -1)
    return Samples(_Listed(str(folder), pictures, labels, [], ""), range(len(pictures)), tuple(held))


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _pictures_under(folder: Path, name: str) -> list[str]:
    """Paths below `folder` of all pictures in its folder `name`."""
    start = os.path.join(folder, "")
    paths = (os.path.join(at, file) for at, _, files in os.walk(start + name) for file in files if _is_picture(file))
    return sorted(path.removeprefix(start) for path in paths)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _table(file: Path, folder: Path) -> Samples:
    if not file.is_file():
        raise ValueError(f"there is no file {file}: give the table of pictures")
    records = _csv(file) if file.suffix == ".csv" else _jsonl(file)
    if not records:
        raise ValueError(f"{file} holds no record: expected one for each picture")
    picture, caption, label = _columns({name: None for record in records for name in record}, str(file))
    pictures = [path for record in records if isinstance(path := record.get(picture), str)]
    if len(pictures) < len(records):
        row = next(row for row, record in enumerate(records, start=1) if not isinstance(record.get(picture), str))
        raise ValueError(f"{file}, record {row}, has no path as {picture}: expected that of a picture")
    labels, classes = _labels([record.get(label) for record in records], str(file)) if label else _none(len(records))
    captions = [_caption(record.get(caption)) for record in records] if caption else []
    return Samples(_Listed(str(folder), pictures, labels, captions, file.name), range(len(records)), classes)


def _csv(file: Path) -> list[dict[str, Any]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no comma separated table in UTF-8 ({error}): write it again") from None


def _jsonl(file: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}, is not valid JSON ({error}): expected a record") from None
            if not isinstance(record, dict):
                raise ValueError(f"{file}, line {number}, is no record: expected {{...}} with a picture")
            records.append(record)
    return records


def _columns(columns: Iterable[str], source: str) -> list[str]:
    """What the source calls picture, caption and label; empty where it has none."""
    columns = list(columns)
    found = [next((name for name in names if name in columns), "") for names in COLUMNS.values()]
    if not found[0]:
        names = "; ".join(f"{what} as {' or '.join(names)}" for what, names in COLUMNS.items())
        raise ValueError(f"{source} has the columns {', '.join(map(str, columns))}: expected {names}")
    return found


def _labels(values: Sequence[Any], source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) and the names of their classes: the numbers given, or the places of sorted names. None is -1."""
    texts = ["" if value is None else str(value).strip() for value in values]
    named = sorted(set(texts) - {"", "-1"})
    if all(text.isdecimal() for text in named):
        highest = max(map(int, named), default=-1)
        if highest > 1_000_000:
            raise ValueError(f"{source} has the label {highest}: expected numbers of classes from 0, or their names")
        return np.array([int(text or -1) for text in texts]), tuple(map(str, range(highest + 1)))
    places = {name: place for place, name in enumerate(named)}
    return np.array([places.get(text, -1) for text in texts]), tuple(named)


def _easy_vqa(split: str) -> Samples:
    pictures, captions, kinds = map(list, zip(*described(split), strict=True))
    labels, classes = _labels(kinds, "easy_vqa")
    return Samples(_Listed("", pictures, labels, captions, ""), range(len(pictures)), classes)


def _none(number: int) -> tuple[np.ndarray, tuple[str, ...]]:
    return np.full(number, -1), ()


def _caption(value: Any) -> str:
    """A caption, the first of a list of them; empty for what is none."""
    first = value[0] if isinstance(value, list) and value else value
    return first.strip() if isinstance(first, str) else ""


def _shards(paths: Sequence[str]) -> Samples:
    names, rows, labels, skipped = [], [], [], []
    for number, path in enumerate(paths):
        with open_shard(path) as file:
            for key, members in members_by_key(path, file).items():
                picture = next((members[suffix] for suffix in PICTURES if suffix in members), None)
                if picture is None:
                    skipped.append(f"{path}/{key}")
                    continue
                texts = [members.get(suffix) for suffix in ("json", "txt")]
                places = [(text.offset_data, text.size) if text else (0, 0) for text in texts]
                names.append(picture.name)
                rows.append((number, picture.offset_data, picture.size, *itertools.chain(*places)))
                label, shown = members.get("cls"), TarMember(path, key, 0, 0)
                labels.append(
                    read_at(file, label.offset_data, label.size, shown).decode(errors="replace") if label else None
                )
    if skipped:
        log.warning(
            "%d of %d samples have no picture; the first: %s", len(skipped), len(skipped) + len(rows), skipped[0]
        )
    if not rows:
        raise ValueError(f"{', '.join(paths[:3])} hold no picture: expected members key.{{{','.join(PICTURES)}}}")
    numbers, classes = _labels(labels, paths[0])
    return Samples(_InShards(tuple(paths), names, np.array(rows, dtype=np.int64), numbers), range(len(rows)), classes)


@dataclass(frozen=True, eq=False)
class _InShards:
    """Row -> sample. A row of `table` is the number of the shard, then offset and size of picture, JSON and text."""

    shards: tuple[str, ...]
    names: list[str]
    table: np.ndarray
    labels: np.ndarray

    def __call__(self, row: int) -> Sample:
        shard, offset, size, *texts = self.table[row].tolist()
        picture = TarMember(self.shards[shard], self.names[row], offset, size)
        return Sample(picture, self._caption(picture, *texts), int(self.labels[row]), str(picture))

    def _caption(self, picture: TarMember, json_at: int, json_size: int, text_at: int, text_size: int) -> str:
        """Empty where both are missing or damaged."""
        with open_shard(picture.shard) as file:
            try:
                record = json.loads(read_at(file, json_at, json_size, picture)) if json_size else None
            except (ValueError, RecursionError):
                record = None
            caption = _caption(record.get("caption")) if isinstance(record, dict) else ""
            return caption or read_at(file, text_at, text_size, picture).decode("utf-8-sig", errors="ignore").strip()


def _data_set(source: str, split: str, subset: str | None, image_folder: str) -> Samples:
    dataset = load_data_set(source, split, subset)
    picture, caption, label = _columns(dataset.column_names, source)
    numbers, classes = _none(len(dataset))
    if label:
        numbers, classes = _labels(dataset.select_columns(label).with_format(None)[:][label], source)
        classes = tuple(getattr(dataset.features[label], "names", classes))
    name = f"{source}{f' ({subset})' if subset else ''} {split}"
    make = _InDataSet(dataset.with_format("arrow"), dataset._fingerprint, name, picture, caption, numbers, image_folder)
    return Samples(make, range(len(dataset)), classes)


@dataclass(frozen=True, eq=False)
class _InDataSet:
    """Row -> sample; rows come as arrow tables, so that a picture is not touched before it is opened."""

    dataset: Any
    fingerprint: str
    source: str
    picture: str
    caption: str
    labels: np.ndarray
    image_folder: str

    def __call__(self, row: int) -> Sample:
        table, name = self.dataset[row], f"{self.source}, row {row}"
        cell = stored_pictures(table[self.picture][0])
        if len(cell) != 1:
            raise ValueError(f"{name} has {len(cell)} pictures: expected one")
        picture = Cell(self.source, self.fingerprint, row, self.picture, 0, self.dataset)
        if is_path(cell[0]):
            picture = os.path.join(self.image_folder, cell[0].as_py())
        caption = _caption(table[self.caption][0].as_py()) if self.caption else ""
        return Sample(picture, caption, int(self.labels[row]), name)
