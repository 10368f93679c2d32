"""Source of images -> its reader, by the form of the argument."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vlm_vision.data.shards.tar import braces
from vlm_vision.tokens.source import Item, Opened, Source
from vlm_vision.tokens.sources.data_sets import DataSet
from vlm_vision.tokens.sources.files import Files
from vlm_vision.tokens.sources.listings import FileList, FolderFiles, Lines, Paths, Pattern, has_wildcards
from vlm_vision.tokens.sources.llava import LlavaJson
from vlm_vision.tokens.sources.options import COLUMNS, SourceOptions
from vlm_vision.tokens.sources.parquet import Parquet
from vlm_vision.tokens.sources.places import (
    base_name,
    exists,
    is_readable,
    is_url,
    is_video,
    names_in,
    opened,
    parent,
    suffix_of,
    walk,
)
from vlm_vision.tokens.sources.records import records
from vlm_vision.tokens.sources.robots import Robots
from vlm_vision.tokens.sources.shards import ShardFiles
from vlm_vision.tokens.sources.tables import Table

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
EXPECTED = (
    "expected images, videos, a folder or pattern of them, a list (.txt), a table (.csv, .tsv, .jsonl, .parquet), LLaVA JSON, "
    "shards (.tar), a LeRobotDataset v3, or a data set of the hub, owner/name"
)


@dataclass(frozen=True)
class Chosen:
    """The reader of one argument."""

    source: Source
    kind: str
    """Noun for an error, such as "a table"."""
    uses: frozenset[str] = frozenset()
    """Names of the options that it uses."""


@dataclass(frozen=True)
class Joined:
    """Sources one after another."""

    sources: tuple[Source, ...]

    def items(self) -> Iterator[Item]:
        for number, source in enumerate(self.sources):
            for item in source.items():
                yield replace(item, place=f"{number}:{item.place}")

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        for number, group in groupby(items, key=lambda item: item.place.partition(":")[0]):
            own = [replace(item, place=item.place.partition(":")[2]) for item in group]
            yield from self.sources[int(number)].images(own)

    def check(self) -> None:
        for source in self.sources:
            source.check()


def open_sources(sources: Sequence[str], options: SourceOptions = SourceOptions()) -> Source:
    """The images of all sources, in their order. Sources of several kinds may be joined.

    Args:
        sources: each of them one of
            an image, a video, or a URL of one; its key is the name of the file;
            a folder of images and videos, with all folders below, or with `metadata.csv` (.jsonl, .parquet) that names its
            images; a pattern, `photos/**/*.jpg`;
            `.txt`, a path in each line; `.csv`, `.tsv`, `.jsonl`, `.parquet`, a path (or bytes) in each row;
            LLaVA's `.json` or `.jsonl`;
            WebDataset shards, `shard-{000..099}.tar`, or a folder of them;
            a folder of a data set, or a hub id `owner/name`;
            the folder or hub id of a LeRobotDataset v3.
            All but the last two may be URLs of any protocol of fsspec.

    Raises:
        ValueError: no source, an unknown one, or an option that none of them uses.
    """
    if not sources:
        raise ValueError(f"there is no source of images: {EXPECTED}")
    chosen: dict[str, Chosen] = {}
    files: list[str] = []
    readers: list[Source] = []
    for source in sources:
        if source in chosen:
            raise ValueError(f"the source {source} is named twice: name it once")
        found = chosen[source] = _choose(source, options)
        if isinstance(found.source, Files) and isinstance(found.source.listing, Paths):
            files += found.source.listing.paths
            continue
        if files:
            readers.append(Files(Paths(tuple(files)), options.every))
        files = []
        readers.append(found.source)
    if files:
        readers.append(Files(Paths(tuple(files)), options.every))
    options.check_used({source: (one.kind, one.uses) for source, one in chosen.items()})
    return readers[0] if len(readers) == 1 else Joined(tuple(readers))


def _choose(source: str, options: SourceOptions) -> Chosen:
    if source.startswith("file://"):
        source = url2pathname(urlsplit(source).path)
    if "::" in source:
        raise ValueError(f"{source} joins protocols with ::, which is not supported: name one protocol")
    if not is_url(source):
        source = os.path.expanduser(source)
    suffix = suffix_of(source)
    is_local = not is_url(source) and os.path.exists(source)
    if not is_local and (has_wildcards(source) or suffix == ".tar"):
        return _pattern(source, suffix, options)
    if is_local and os.path.isdir(source):
        return _folder(source, options)
    if not is_url(source) and not is_local:
        return _hub(source, suffix, options)
    if suffix == ".tar":
        return _shards([source], options)
    if suffix in TABLES:
        return _table(source, suffix, options)
    if suffix == ".txt":
        return _files(Lines(source, options.image_root or parent(source)), options, "image_root")
    if is_readable(source):
        return _files(Paths((source,)), options)
    if not is_url(source):
        raise ValueError(f"{source} is not a source of images: {EXPECTED}")
    return _folder(source, options)


def _files(listing: FileList, options: SourceOptions, *uses: str) -> Chosen:
    kind = "a video" if isinstance(listing, Paths) and is_video(listing.paths[0]) else listing.kind
    if options.every > 1:
        if any(is_video(one.path) for one in listing.files()):
            uses = (*uses, "every")
    return Chosen(Files(listing, options.every), kind, frozenset(uses))


def _pattern(source: str, suffix: str, options: SourceOptions) -> Chosen:
    """Files that a pattern with wildcards names; of shards also one with braces."""
    if suffix == ".tar":
        paths: list[str] = []
        for one in braces(source):
            is_pattern = has_wildcards(one) and not os.path.exists(one)
            paths += [found.path for found in Pattern(one).matches()] if is_pattern else [one]
        if not paths:
            raise ValueError(f"no file matches {source}: expected shards")
        return _shards(paths, options)
    if suffix not in TABLES:
        return _files(Pattern(source), options)
    found = [_table(one.path, suffix, options) for one in Pattern(source).matches()]
    if not found:
        raise ValueError(f"no file matches {source}: expected tables")
    reader = found[0].source if len(found) == 1 else Joined(tuple(one.source for one in found))
    return replace(found[0], source=reader)


def _shards(paths: Sequence[str], options: SourceOptions) -> Chosen:
    if lacking := [path for path in paths if not is_url(path) and not os.path.isfile(path)]:
        raise ValueError(f"there is no file {lacking[0]}: expected a shard")
    return Chosen(ShardFiles(tuple(paths), options.cache), ShardFiles.kind)


def _table(file: str, suffix: str, options: SourceOptions) -> Chosen:
    root = options.image_root or parent(file)
    if suffix == ".parquet":
        table = Parquet(file, root, options.choice, options.every)
        return Chosen(table, "a table", COLUMNS | {"image_root", "every"})
    if suffix in (".json", ".jsonl"):
        with opened(file) as content:
            _, record = next(records(file, content), ("", {}))
        if "conversations" in record:
            return Chosen(LlavaJson(file, root), "LLaVA JSON", frozenset({"image_root"}))
    return Chosen(Table(file, root, options.choice, options.every), "a table", COLUMNS | {"image_root", "every"})


def _folder(folder: str, options: SourceOptions) -> Chosen:
    """The reader of a folder, by what it holds: images first, then shards, then tables of a data set."""
    if is_url(folder):
        inside = names_in(folder)
        if any(base_name(path) == "meta" for path in inside) and exists(f"{folder.rstrip('/')}/meta/info.json"):
            raise ValueError(f"{folder} is robot data, whose videos are read locally: copy the folder to this machine")
        if any(path.endswith(".tar") for path in inside) and not any(map(is_readable, inside)):
            return _shards([one.path for one in walk(folder) if one.path.endswith(".tar")], options)
        return _files(FolderFiles(folder), options)
    at = Path(folder)
    if (at / "meta" / "info.json").is_file():
        return _robots(folder, True, options)
    if any((at / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _data_set(folder, True, options)
    for suffix in (".csv", ".jsonl", ".parquet"):
        if (at / f"metadata{suffix}").is_file():
            return _table(os.path.join(folder, f"metadata{suffix}"), suffix, options)
    if not any(is_readable(one.path) for one in walk(folder)):
        if shards := [one.path for one in walk(folder) if one.path.endswith(".tar")]:
            return _shards(shards, options)
        if any(one.path.endswith((".parquet", ".arrow")) for one in walk(folder)):
            return _data_set(folder, True, options)
    return _files(FolderFiles(folder), options)


def _robots(source: str, local: bool, options: SourceOptions) -> Chosen:
    revision = None if local else options.revision or None
    robots = Robots(source, local, options.cameras, options.episodes, options.every, revision)
    uses = {"cameras", "episodes", "every"} | (set() if local else {"revision"})
    return Chosen(robots, "robot data", frozenset(uses))


def _data_set(source: str, local: bool, options: SourceOptions) -> Chosen:
    split, subset, revision = options.split or "train", options.subset or None, options.revision or None
    root = options.image_root or (source if local else "")
    data = DataSet(source, split, subset, revision, local, root, options.choice)
    uses = COLUMNS | {"image_root", "split"} | (frozenset() if local else {"subset", "revision"})
    return Chosen(data, "a data set", uses)


def _hub(source: str, suffix: str, options: SourceOptions) -> Chosen:
    """A data set of the hub, of robots if it has a meta/info.json."""
    known = suffix in (*TABLES, ".txt") or is_readable(source)
    if known or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise ValueError(f"there is no file or folder {source}: {EXPECTED}")
    if options.cameras or options.episodes or _is_robot_data(source, options.revision or None):
        return _robots(source, False, options)
    return _data_set(source, False, options)


def _is_robot_data(source: str, revision: str | None) -> bool:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(source, "meta/info.json", repo_type="dataset", revision=revision)
    except Exception:  # offline, unknown, gated or without that file: reading it as a data set states which
        return False
    return True
