"""Shards by URL as files of one folder, fetched at access and removed again, so that data may be larger than the disk.

Any number of processes on a machine share the folder: a shard is fetched by one of them, and appears when it is whole and
indexed. An open file stays readable to its process after removal.
"""

import hashlib
import logging
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from vlm_vision.data.shards.fetch import MissingFileError, UnreachableError, fetch
from vlm_vision.data.shards.members import SampleOffsets, index_of
from vlm_vision.data.shards.tar import whole_members

log = logging.getLogger(__name__)

LOST_FOR = 3600
"""Seconds until a missing shard is requested again, and files of a killed process are removed."""
_PLACES = struct.Struct(f"<{len(SampleOffsets._fields)}q")
_END = struct.Struct("<qq")
"""End of a shard's file: bytes of the tar file, and bytes of each record of the index after it."""


@dataclass(frozen=True)
class OpenShard:
    """A tar file and its index: the offsets and the name of the image of every sample, in records of one size."""

    file: BinaryIO
    size: int
    """Bytes of the tar file."""
    width: int
    """Bytes of a record."""
    count: int
    """Number of samples."""

    def sample(self, index: int) -> tuple[str, SampleOffsets]:
        """Name of the image and offsets of a sample, `index` < `count`."""
        self.file.seek(self.size + index * self.width)
        record = self.file.read(self.width)
        return record[_PLACES.size :].rstrip(b"\0").decode(), SampleOffsets(*_PLACES.unpack_from(record))


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards. An existing shard is not compared with its URL again: if the data there changed, remove it."""

    folder: str = "~/.cache/vlm_vision/shards"
    """Folder on a disk of this machine."""
    gb: float = 32.0
    """Size of all whole shards in units of 10^9 bytes; shards in transfer are extra."""

    def __post_init__(self):
        if self.gb <= 0:
            raise ValueError(f"the cache of shards has {self.gb} GB: expected more than 0")

    def beside(self, url: str, name: str = "") -> Path:
        """Path of a file by URL in the cache, or of another one in the same folder."""
        parts = urlsplit(url)
        path = PurePosixPath(parts.path)
        source = parts._replace(path=str(path.parent)).geturl()
        folder = hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
        return Path(self.folder).expanduser() / folder / (name or path.name)

    @contextmanager
    def opened(self, url: str, size: int | None = None) -> Iterator[OpenShard]:
        """A shard, fetched if it is not in the cache.

        Args:
            size: number of its samples, if known; a warning states a different one.

        Raises:
            MissingFileError: it does not exist at its URL, checked at most an hour ago.
            UnreachableError: it cannot be fetched now, or not be written.
        """
        path = self.beside(url)
        shard = _there(path)
        if shard is None:
            _check_lost(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                shard = _there(path) or self._fetched(url, path, size)
        with shard.file:
            yield shard

    def bring(self, url: str, size: int) -> None:
        """Fetch a missing shard, unless another process does. Raises as `opened`."""
        path = self.beside(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.utime(path)
        except FileNotFoundError:
            try:
                with FileLock(path.with_suffix(".lock"), blocking=False):
                    if not path.exists():
                        self._fetched(url, path, size).file.close()
            except Timeout:
                pass

    def _fetched(self, url: str, path: Path, size: int | None) -> OpenShard:
        """Fetch a missing shard, in the process that has its lock."""
        _check_lost(path)
        part = path.with_suffix(".part")
        try:
            with ExitStack() as closing:
                file = closing.enter_context(open(part, "w+b"))
                fetch(url, file)
                shard = _indexed(url, file, size)
                os.fsync(file.fileno())  # before the rename, or a power cut leaves the name without the content
                with FileLock(path.parent.parent / ".lock"):
                    self._make_room(part.stat().st_size)
                    os.replace(part, path)
                closing.pop_all()
            return shard
        except MissingFileError as error:
            path.with_suffix(".lost").write_text(str(error))
            log.warning("%s: its %ssamples count as bad", error, "" if size is None else f"{size} ")
            raise
        except UnreachableError:
            raise
        except OSError as error:
            raise UnreachableError(
                f"{path} cannot be written ({error.strerror}): make room, or choose another cache"
            ) from None
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove the shards that were not used for the longest time."""
        root = Path(self.folder).expanduser()
        found = sorted(((path.stat(), path) for path in root.glob("*/*.tar")), key=lambda one: one[0].st_mtime_ns)
        filled = size + sum(stat.st_size for stat, _ in found)
        for stat, path in found:
            if filled > self.gb * 1e9:
                path.unlink()
                filled -= stat.st_size
        for part in root.glob("*/*.part"):
            with suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > LOST_FOR:
                    part.unlink()


def _indexed(url: str, file: BinaryIO, size: int | None) -> OpenShard:
    """A fetched shard with its index appended; for a damaged one, the index of its whole samples."""
    samples, damage = whole_members(url, file)
    names, places, _ = index_of(samples)
    if damage or size not in (None, len(names)):
        expected = "" if size is None else f" of {size}"
        log.warning("%s: %d samples%s; missing ones count as bad", damage or url, len(names), expected)
    encoded = [name.encode() for name in names]
    width = _PLACES.size + max(map(len, encoded), default=0)
    tar_bytes = file.seek(0, os.SEEK_END)
    for name, place in zip(encoded, places, strict=True):
        file.write((_PLACES.pack(*place) + name).ljust(width, b"\0"))
    file.write(_END.pack(tar_bytes, width))
    file.flush()
    return OpenShard(file, tar_bytes, width, len(names))


def _there(path: Path) -> OpenShard | None:
    """A shard in the cache, marked as used; None if missing."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return None
    os.utime(file.fileno())
    total = file.seek(0, os.SEEK_END)
    end = total - _END.size
    if end >= 0:
        file.seek(end)
        size, width = _END.unpack(file.read(_END.size))
        if 0 < size <= end and width >= _PLACES.size and (end - size) % width == 0:
            return OpenShard(file, size, width, (end - size) // width)
    file.close()  # what a power cut left: empty, short, or with zeros at the end
    log.warning("%s is damaged in the cache: it is fetched again", path)
    path.unlink(missing_ok=True)
    return None


def _check_lost(path: Path) -> None:
    """Raise MissingFileError if it was missing in the last hour."""
    marker = path.with_suffix(".lost")
    try:
        if time.time() - marker.stat().st_mtime < LOST_FOR:
            raise MissingFileError(marker.read_text())
    except FileNotFoundError:
        pass
