"""Number of samples of each shard: read from JSON in the folder of the shards, or counted."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from tqdm import tqdm

from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.data.shards.fetch import MissingFileError, fetch_temporary
from vlm_vision.data.shards.members import index_of
from vlm_vision.data.shards.tar import braces, expand_pattern, members_by_key, open_shard

SIZES = "sizes.json"
_MOST_SAMPLES = 10**8
"""Most samples of a shard that are believed."""
AT_ONCE = 16
"""Files that are fetched at the same time; for shards a quarter of it."""


def shard_urls(source: str) -> list[str]:
    """`https://host/{000..099}.tar` -> its URLs. Raises ValueError for a URL other than .tar."""
    urls = braces(source)
    for url in urls:
        if not urlsplit(url).path.endswith(".tar"):
            raise ValueError(
                f"{url} is not a shard: expected .tar files by URL, such as https://host/{{00000..00099}}.tar"
            )
    return urls


def sizes_of(source: str, cache: ShardCache) -> dict[str, int]:
    """Samples of each shard by URL, kept in the cache, so that a resumed run reads the same.

    They are read from webdataset's `sizes.json` in the folder of the shards, {"00000.tar": 9973, ...}, or from "successes" of
    img2dataset's `00000_stats.json` of each.

    Raises:
        ValueError: a shard in neither of them.
    """
    urls = shard_urls(source)
    lock = cache.beside(urls[0], "sizes.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        kept = _kept(urls, cache)
        known = dict(kept)
        tables = {url: _sibling(url, SIZES) for url in urls if url not in known}
        records = {table: _record(table) for table in set(tables.values())}
        known |= {
            url: size for url, table in tables.items() if (size := _number(records[table], _name(url))) is not None
        }
        unknown = [url for url in urls if url not in known]
        stats = [_sibling(url, f"{_name(url).removesuffix('.tar')}_stats.json") for url in unknown]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = tqdm(pool.map(_record, stats), "samples of each shard", len(stats), disable=not stats or None)
            sizes = [_number(record, "successes") for record in found]
        known |= {url: size for url, size in zip(unknown, sizes, strict=True) if size is not None}
        lost = [url for url in unknown if url not in known]
        if lost:
            raise ValueError(
                f"the numbers of samples of {len(lost)} of {len(urls)} shards are unknown, such as {lost[0]}: expected {SIZES} or "
                f"{_name(stats[unknown.index(lost[0])])} in its folder; count them with vlm-vision sizes '{source}'"
            )
        _keep({url: size for url, size in known.items() if url not in kept}, cache)
    return {url: known[url] for url in urls}


def count_samples(source: str, cache: ShardCache) -> list[Path]:
    """Count the samples of shards, each of which is read once, and write sizes.json.

    For local shards it is written to their folder; shards by URL are fetched, and it is written to the cache, which `sizes_of`
    reads first. There a stopped count resumes, and a missing shard has 0.

    Returns:
        The files written, one for each folder of shards.

    Raises:
        ValueError: not shards, or a damaged or missing local one.
    """
    if "://" not in source:
        sizes: dict[Path, dict[str, int]] = {}
        for path in map(Path, tqdm(expand_pattern(source), unit="shard", disable=None)):
            with open_shard(str(path)) as file:
                count = len(index_of(members_by_key(str(path), file))[0])
            sizes.setdefault(path.with_name(SIZES), {})[path.name] = count
        for table, counts in sizes.items():
            _add(table, counts)
        return list(sizes)

    def counted(url: str) -> int:
        try:
            with cache.opened(url) as shard:
                return shard.count
        except MissingFileError:
            return 0

    urls = shard_urls(source)
    known = _kept(urls, cache)
    unknown = [url for url in urls if url not in known]
    with ThreadPoolExecutor(AT_ONCE // 4) as pool:
        found = tqdm(pool.map(counted, unknown), total=len(unknown), unit="shard", disable=None)
        for url, count in zip(unknown, found, strict=True):
            _keep({url: count}, cache)
    return sorted({cache.beside(url, SIZES) for url in urls})


def _name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


def _sibling(url: str, name: str) -> str:
    parts = urlsplit(url)
    return parts._replace(path=str(PurePosixPath(parts.path).with_name(name))).geturl()


def _record(url: str) -> dict[str, Any]:
    """A JSON object by URL; empty where there is none."""
    try:
        text = fetch_temporary(url)
    except MissingFileError:
        return {}
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{url} is not valid JSON ({error}): expected numbers of samples") from None
    return record if isinstance(record, dict) else {}


def _number(record: dict[str, Any], key: str) -> int | None:
    value = record.get(key)
    return value if type(value) is int and 0 <= value <= _MOST_SAMPLES else None


def _kept(urls: Iterable[str], cache: ShardCache) -> dict[str, int]:
    """Sizes in the cache."""
    tables = {url: cache.beside(url, SIZES) for url in urls}
    read = {table: _stored(table) for table in set(tables.values())}
    found = {url: _number(read[table], _name(url)) for url, table in tables.items()}
    return {url: size for url, size in found.items() if size is not None}


def _stored(table: Path) -> dict[str, Any]:
    """Sizes in a file of the cache; empty for a missing one, and for one that a power cut left damaged."""
    try:
        held = json.loads(table.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _keep(sizes: dict[str, int], cache: ShardCache) -> None:
    tables: dict[Path, dict[str, int]] = {}
    for url, size in sizes.items():
        tables.setdefault(cache.beside(url, SIZES), {})[_name(url)] = size
    for table, counts in tables.items():
        _add(table, counts)


def _add(table: Path, counts: dict[str, int]) -> None:
    held = _stored(table)
    part = table.with_name(f".{table.name}.{os.getpid()}")
    with part.open("w") as file:
        json.dump(held | counts, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, table)
