"""Shards by URL as files of one folder, fetched when wanted and dropped again, so that data may be larger than the disk.

Any number of processes on a machine share the folder: a shard is fetched by one of them, and appears when it is whole and
indexed. What a process has open stays readable to it when the file is dropped.
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
"""Seconds until a shard that was missing is asked for again, and what a killed process left is dropped."""
_PLACES = struct.Struct(f"<{len(SampleOffsets._fields)}q")
_END = struct.Struct("<qq")
"""At the end of the file of a shard: bytes of the tar file, bytes of each record of the index that follows it."""


@dataclass(frozen=True)
class OpenShard:
    """A tar file and its index: the places and the name of the image of every sample, in records of one size."""

    file: BinaryIO
    size: int
    """Bytes of the tar file."""
    width: int
    """Bytes of a record."""
    count: int
    """Samples."""

    def sample(self, index: int) -> tuple[str, SampleOffsets]:
        """Name of the image and places of a sample, `index` < `count`."""
        self.file.seek(self.size + index * self.width)
        record = self.file.read(self.width)
        return record[_PLACES.size :].rstrip(b"\0").decode(), SampleOffsets(*_PLACES.unpack_from(record))


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards. One that is there is not compared to its URL again: for other data at the same URL, remove it."""

    folder: str = "~/.cache/vlm_vision/shards"
    """On a disk of this machine."""
    gb: float = 32.0
    """10^9 bytes that whole shards may fill; those that are being fetched come on top."""

    def __post_init__(self):
        if self.gb <= 0:
            raise ValueError(f"the cache of shards has {self.gb} GB: it must have more than 0")

    def beside(self, url: str, name: str = "") -> Path:
        """Where a file by URL is kept, or another one beside it."""
        parts = urlsplit(url)
        path = PurePosixPath(parts.path)
        source = parts._replace(path=str(path.parent)).geturl()
        folder = hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
        return Path(self.folder).expanduser() / folder / (name or path.name)

    @contextmanager
    def opened(self, url: str, told: int | None = None) -> Iterator[OpenShard]:
        """A shard, fetched if it is not there.

        Args:
            told: samples it should have, if that is known; a warning says if it has others.

        Raises:
            Missing: it is not there by its URL, as was found at most an hour ago.
            Unreachable: it cannot be fetched now, or not be written.
        """
        path = self.beside(url)
        shard = _there(path)
        if shard is None:
            _check_lost(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                shard = _there(path) or self._fetched(url, path, told)
        with shard.file:
            yield shard

    def bring(self, url: str, told: int) -> None:
        """Fetch a shard that is not there, unless another process does. Raises as `opened`."""
        path = self.beside(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.utime(path)
        except FileNotFoundError:
            try:
                with FileLock(path.with_suffix(".lock"), blocking=False):
                    if not path.exists():
                        self._fetched(url, path, told).file.close()
            except Timeout:
                pass

    def _fetched(self, url: str, path: Path, told: int | None) -> OpenShard:
        """A shard that is not there, by the process that has its lock."""
        _check_lost(path)
        part = path.with_suffix(".part")
        try:
            with ExitStack() as closing:
                file = closing.enter_context(open(part, "w+b"))
                fetch(url, file)
                shard = _indexed(url, file, told)
                with FileLock(path.parent.parent / ".lock"):
                    self._make_room(part.stat().st_size)
                    os.replace(part, path)
                closing.pop_all()
            return shard
        except MissingFileError as error:
            path.with_suffix(".lost").write_text(str(error))
            log.warning("%s: its %ssamples count as bad", error, "" if told is None else f"{told} ")
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
        """Drop the shards that were not used for the longest time."""
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


def _indexed(url: str, file: BinaryIO, told: int | None) -> OpenShard:
    """A shard that was fetched, with its index behind it; of a damaged one, of what is whole."""
    samples, damage = whole_members(url, file)
    names, places, _ = index_of(samples)
    if damage or told not in (None, len(names)):
        told_of = "" if told is None else f" of the {told} that were told"
        log.warning("%s: %d samples%s; what is missing counts as bad", damage or url, len(names), told_of)
    encoded = [name.encode() for name in names]
    width = _PLACES.size + max(map(len, encoded), default=0)
    size = file.seek(0, os.SEEK_END)
    for name, place in zip(encoded, places, strict=True):
        file.write((_PLACES.pack(*place) + name).ljust(width, b"\0"))
    file.write(_END.pack(size, width))
    file.flush()
    return OpenShard(file, size, width, len(names))


def _there(path: Path) -> OpenShard | None:
    """A shard that is there, marked as used."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return None
    os.utime(file.fileno())
    end = file.seek(-_END.size, os.SEEK_END)
    size, width = _END.unpack(file.read(_END.size))
    return OpenShard(file, size, width, (end - size) // width)


def _check_lost(path: Path) -> None:
    """Raises Missing if it was found missing in the last hour."""
    marker = path.with_suffix(".lost")
    try:
        if time.time() - marker.stat().st_mtime < LOST_FOR:
            raise MissingFileError(marker.read_text())
    except FileNotFoundError:
        pass
