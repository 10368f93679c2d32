"""Images with captions, with labels, or alone, from any source of pretraining."""

import csv
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_vision.data.conversations.easy_vqa import captioned_images
from vlm_vision.data.conversations.hf_dataset import Cell, is_path, load_data_set, stored_images
from vlm_vision.data.conversations.webdataset import IMAGES
from vlm_vision.data.images.remote import remote_shards
from vlm_vision.data.sample import Sample, Samples, Shards, caption_of
from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.data.shards.members import SampleOffsets, caption_at, index_of, label_at
from vlm_vision.data.shards.tar import TarMember, expand_pattern, members_by_key, open_shard

log = logging.getLogger(__name__)

COLUMNS = {"image": ("picture", "image"), "caption": ("caption", "text"), "label": ("label",)}
"""Names of the columns in a table; the first that exists is used."""
SUFFIXES = (*(f".{suffix}" for suffix in IMAGES), ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff")
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
TOGETHER = 16
"""Shards by URL that are shuffled together."""


def read_samples(
    source: str,
    split: str = "train",
    *,
    images: str = "",
    shuffle_shards: int | None = None,
    cache: ShardCache = ShardCache(),
    classes: int = 0,
) -> Samples:
    """Images of any source, as a sequence with random access.

    Args:
        source: one of
            a folder of class folders, as ImageNet's, whose sorted names are the classes, or a folder of images; where all its
            folders are named as splits, train, val, test, the one of `split` is read;
            a `.csv` or `.jsonl` file with the columns `picture` (or image), caption (or text), label, of which only the first
            is required; labels are names of classes or numbers from 0;
            WebDataset shards, `shard-{000000..000009}.tar`, or a folder of them, as img2dataset writes them: `key.jpg` (png,
            webp) with "caption" of `key.json`, else `key.txt`, and a number in `key.cls`;
            the same by URL, `https://host/{00000..00999}.tar` or any protocol of fsspec (s3, gs, hf), even larger
            than the disk: see `remote.remote_shards`;
            a folder that `datasets` reads, `hf:owner/name` or `hf:owner/name:subset`, with columns as a `.csv` file;
            `easy_vqa`, whose captions and classes ("blue circle") are measured in the images.
        split: split of easy_vqa, of data sets, and of folders that have it; other sources have one.
        images: folder that image paths start from; default the folder of the file.
        shuffle_shards: number of shards that are shuffled together, so that reads stay close to each other; 0 for all.
            None for 16 shards by URL, and all of others.
        cache: folder of shards by URL, and its size.
        classes: number of classes of labels in shards by URL, which are numbers from 0; 0 to ignore the labels.

    Raises:
        ValueError: an unknown source, a damaged or empty one, or labels that are not classes.
    """
    if "://" in source:
        return remote_shards(
            source, cache, classes=classes, together=TOGETHER if shuffle_shards is None else shuffle_shards
        )
    path = Path(source)
    if source == "easy_vqa":
        return _easy_vqa(split)
    if source.startswith("hf:"):
        name, _, subset = source.removeprefix("hf:").partition(":")
        return _data_set(name, split, subset or None, images)
    if path.suffix == ".tar":
        return _shards(expand_pattern(source), shuffle_shards or 0)
    if path.suffix in (".csv", ".jsonl"):
        return _table(path, Path(images or path.parent))
    if not path.is_dir():
        raise ValueError(
            f"{source!r} is not a source of images: expected a folder, a .csv or .jsonl file, .tar shards, hf:owner/name or easy_vqa"
        )
    if shards := sorted(map(str, path.glob("*.tar"))):
        return _shards(shards, shuffle_shards or 0)
    tables = ("dataset_dict.json", "state.json", "metadata.*", "*.parquet", "*/*.parquet", "*.arrow")
    if any(found for pattern in tables for found in path.glob(pattern)):
        return _data_set(source, split, None, images)
    return _folder(path, split)


@dataclass(frozen=True, eq=False)
class _FileRows:
    """Row -> sample, of files listed in memory."""

    folder: str
    images: list[str]
    labels: np.ndarray
    captions: list[str]
    """Captions; empty for none."""
    source: str
    """Name of the source, for names of samples by row; empty for names by path."""

    def __call__(self, row: int) -> Sample:
        image = os.path.join(self.folder, self.images[row])
        name = f"{self.source}, record {row + 1}" if self.source else image
        return Sample(image, self.captions[row] if self.captions else "", int(self.labels[row]), name)


def _folder(folder: Path, split: str) -> Samples:
    inside = _folders(folder)
    if inside and set(inside) <= SPLITS | {split}:
        if split not in inside:
            raise ValueError(f"{folder} has the splits {', '.join(inside)}: expected one of them, not {split!r}")
        folder, inside = folder / split, _folders(folder / split)
    own = sorted(entry.name for entry in os.scandir(folder) if _is_image(entry.name) and entry.is_file())
    held = {name: _images_under(folder, name) for name in inside}
    if own and any(held.values()):
        raise ValueError(f"{folder} holds both images and folders of images: expected one of the two")
    if own:
        held = {}
    if empty := [name for name, images in held.items() if not images]:
        raise ValueError(f"class folder {folder / empty[0]} holds no image: add images or remove it")
    images = own or [image for images in held.values() for image in images]
    if not images:
        raise ValueError(f"{folder} holds no image: expected {', '.join(SUFFIXES)}, in it or in class folders")
    labels = np.repeat(np.arange(len(held)), [len(each) for each in held.values()]) if held else np.full(len(own), -1)
    return Samples(_FileRows(str(folder), images, labels, [], ""), range(len(images)), tuple(held))


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images_under(folder: Path, name: str) -> list[str]:
    """Paths below `folder` of all images in its folder `name`."""
    start = os.path.join(folder, "")
    paths = (os.path.join(at, file) for at, _, files in os.walk(start + name) for file in files if _is_image(file))
    return sorted(path.removeprefix(start) for path in paths)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _table(file: Path, folder: Path) -> Samples:
    if not file.is_file():
        raise ValueError(f"there is no file {file}: expected a table of images")
    records = _csv(file) if file.suffix == ".csv" else _jsonl(file)
    if not records:
        raise ValueError(f"{file} holds no record: expected one for each image")
    image, caption, label = _columns({name: None for record in records for name in record}, str(file))
    images = [path for record in records if isinstance(path := record.get(image), str)]
    if len(images) < len(records):
        row = next(row for row, record in enumerate(records, start=1) if not isinstance(record.get(image), str))
        raise ValueError(f"{file}, record {row}, has no path in {image}: expected that of an image")
    labels, classes = _labels([record.get(label) for record in records], str(file)) if label else _none(len(records))
    captions = [caption_of(record.get(caption)) for record in records] if caption else []
    return Samples(_FileRows(str(folder), images, labels, captions, file.name), range(len(records)), classes)


def _csv(file: Path) -> list[dict[str, Any]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a comma-separated table in UTF-8 ({error}): write it again") from None


def _jsonl(file: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}, is not valid JSON ({error}): expected a record") from None
            if not isinstance(record, dict):
                raise ValueError(f"{file}, line {number}, is not a record: expected {{...}} with an image")
            records.append(record)
    return records


def _columns(columns: Iterable[str], source: str) -> list[str]:
    """Names of the columns for image, caption and label; empty for none."""
    columns = list(columns)
    found = [next((name for name in names if name in columns), "") for names in COLUMNS.values()]
    if not found[0]:
        names = "; ".join(f"{what} as {' or '.join(names)}" for what, names in COLUMNS.items())
        raise ValueError(f"{source} has the columns {', '.join(map(str, columns))}: expected {names}")
    return found


def _labels(values: Sequence[Any], source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) and the names of their classes: the numbers, or indices of sorted names. None becomes -1."""
    texts = ["" if value is None else str(value).strip() for value in values]
    named = sorted(set(texts) - {"", "-1"})
    if all(text.isdecimal() for text in named):
        highest = max(map(int, named), default=-1)
        if highest > 1_000_000:
            raise ValueError(f"{source} has the label {highest}: expected numbers of classes from 0, or their names")
        return np.array([int(text or -1) for text in texts]), tuple(map(str, range(highest + 1)))
    if (numbers := [text for text in named if text.isdecimal()]) and len(numbers) > len(named) / 2:
        odd = next(text for text in named if not text.isdecimal())
        raise ValueError(
            f"{source}, record {texts.index(odd) + 1}, has the label {odd[:80]!r}, and most labels are numbers such as {numbers[0]}: "
            "write numbers from 0 in all, or names in all"
        )
    places = {name: place for place, name in enumerate(named)}
    return np.array([places.get(text, -1) for text in texts]), tuple(named)


def _easy_vqa(split: str) -> Samples:
    images, captions, kinds = map(list, zip(*captioned_images(split), strict=True))
    labels, classes = _labels(kinds, "easy_vqa")
    return Samples(_FileRows("", images, labels, captions, ""), range(len(images)), classes)


def _none(number: int) -> tuple[np.ndarray, tuple[str, ...]]:
    return np.full(number, -1), ()


def _shards(paths: Sequence[str], together: int) -> Samples:
    names, rows, labels, without, sizes = [], [], [], [], []
    for number, path in enumerate(paths):
        with open_shard(path) as file:
            found, places, lacking = index_of(members_by_key(path, file))
            shown = [
                TarMember(path, name, place.image, place.image_size) for name, place in zip(found, places, strict=True)
            ]
            labels += [label_at(file, place, image) for place, image in zip(places, shown, strict=True)]
        names += found
        rows += [(number, *place) for place in places]
        without += [f"{path}/{key}" for key in lacking]
        sizes.append(len(found))
    if without:
        log.warning("%d of %d samples have no image; the first: %s", len(without), len(without) + len(rows), without[0])
    if not rows:
        raise ValueError(f"{', '.join(paths[:3])} hold no image: expected members key.{{{','.join(IMAGES)}}}")
    numbers, classes = _labels(labels, paths[0])
    make = _ShardRows(tuple(paths), names, np.array(rows, dtype=np.int64), numbers)
    return Samples(make, range(len(rows)), classes, Shards(tuple(sizes), together))


@dataclass(frozen=True, eq=False)
class _ShardRows:
    """Row -> sample. A row of `table` is the number of the shard, then its `SampleOffsets`."""

    shards: tuple[str, ...]
    names: list[str]
    table: np.ndarray
    labels: np.ndarray

    def __call__(self, row: int) -> Sample:
        shard, *numbers = self.table[row].tolist()
        places = SampleOffsets(*numbers)
        image = TarMember(self.shards[shard], self.names[row], places.image, places.image_size)
        with open_shard(image.shard) as file:
            return Sample(image, caption_at(file, places, image), int(self.labels[row]), str(image))


def _data_set(source: str, split: str, subset: str | None, image_folder: str) -> Samples:
    dataset = load_data_set(source, split, subset)
    image, caption, label = _columns(dataset.column_names, source)
    numbers, classes = _none(len(dataset))
    if label:
        numbers, classes = _labels(dataset.select_columns(label).with_format(None)[:][label], source)
        classes = tuple(getattr(dataset.features[label], "names", classes))
    name = f"{source}{f' ({subset})' if subset else ''} {split}"
    make = _DataSetRows(dataset.with_format("arrow"), dataset._fingerprint, name, image, caption, numbers, image_folder)
    return Samples(make, range(len(dataset)), classes)


@dataclass(frozen=True, eq=False)
class _DataSetRows:
    """Row -> sample; rows come as arrow tables, so that an image is not read before it is opened."""

    dataset: Any
    fingerprint: str
    source: str
    image: str
    caption: str
    labels: np.ndarray
    image_folder: str

    def __call__(self, row: int) -> Sample:
        table, name = self.dataset[row], f"{self.source}, row {row}"
        cell = stored_images(table[self.image][0])
        if len(cell) != 1:
            raise ValueError(f"{name} has {len(cell)} images: expected one")
        image = Cell(self.source, self.fingerprint, row, self.image, 0, self.dataset)
        if is_path(cell[0]):
            image = os.path.join(self.image_folder, cell[0].as_py())
        caption = caption_of(table[self.caption][0].as_py()) if self.caption else ""
        return Sample(image, caption, int(self.labels[row]), name)
