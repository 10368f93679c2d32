"""Tar files as WebDataset shards: their members by key, read by random access."""

import glob
import itertools
import os
import re
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from vlm_vision.data.stored_image import StoredImage


@dataclass(frozen=True)
class TarMember(StoredImage):
    """An image inside a tar file."""

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        with open_shard(self.shard) as file:
            return read_at(file, self.offset, self.size, self)

    def head(self, size: int) -> bytes:
        with open_shard(self.shard) as file:
            return read_at(file, self.offset, min(size, self.size), self)

    def version(self) -> str:
        try:
            stat = os.stat(self.shard)
        except OSError:
            raise ValueError(f"there is no shard {self.shard}: expected the tar file that was indexed") from None
        return f"{stat.st_size} {stat.st_mtime_ns} {self.offset} {self.size}"


def members_by_key(path: str, file: BinaryIO) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of a shard by their key, their name up to its first dot, and by suffix in lower case.

    Raises:
        ValueError: the shard is compressed, damaged or truncated, or has a member twice.
    """
    samples, damage = whole_members(path, file)
    if damage:
        raise ValueError(damage)
    return samples


def with_second_dot(members: Mapping[str, tarfile.TarInfo], images: tuple[str, ...]) -> list[str]:
    """Names of the images of a key whose sample cannot be read, because their names have a second dot: `page.00.jpg`.

    Members such as `page.mask.png` next to an image `page.jpg` are no samples, and are not among them.
    """
    stems: dict[str, list[str]] = {}
    for suffix in members:
        stem, dot, end = suffix.rpartition(".")
        if dot:
            stems.setdefault(stem, []).append(end)
    lost = [
        f"{stem}.{end}"
        for stem, ends in stems.items()
        for end in ends
        if end in images and (len(ends) > 1 or not {*members} & {*images})
    ]
    return [members[suffix].name for suffix in lost]


def whole_members(path: str, file: BinaryIO) -> tuple[dict[str, dict[str, tarfile.TarInfo]], str]:
    """As `members_by_key`, for members before any damage of the shard; and the damage, empty for none."""
    members, damage = [], ""
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                members.append(member)
            end = tar.offset
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            damage = (
                f"{path} ends after {end} bytes without the end mark of a tar file: it was cut short, download it again"
            )
    except tarfile.TarError as error:
        damage = f"{path} is not a complete, uncompressed tar file ({error}): write or download it again"
    if not damage and len({member.name for member in members}) < len(members):
        twice = Counter(member.name for member in members).most_common(1)[0][0]
        damage = f"{path} holds the member {twice} twice: write it again with a separate key for each sample"
    size = file.seek(0, os.SEEK_END)
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        if member.type in tarfile.REGULAR_TYPES and not member.issparse() and member.offset_data + member.size <= size:
            folder, slash, base = member.name.rpartition("/")
            key, _, suffix = base.partition(".")
            held = samples.setdefault(folder + slash + key, {})
            if suffix.lower() in held and not damage:
                names = f"{held[suffix.lower()].name} and {member.name}"
                damage = f"{path} holds the members {names}, which are one member of one sample: rename one of them"
            held[suffix.lower()] = member
    return samples, damage


def open_shard(path: str) -> BinaryIO:
    """Open a shard. Raises ValueError if the file cannot be opened."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError(f"shard {path} is no regular file: expected a tar file")
        return open(path, "rb")
    except OSError as error:
        raise ValueError(f"shard {path} cannot be opened ({error.strerror}): expected a local tar file") from None


def read_at(file: BinaryIO, offset: int, size: int, image: TarMember) -> bytes:
    """A member of the shard of `image`. Raises ValueError if the shard is now shorter."""
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{image} is cut short: {image.shard} changed after it was indexed; start again")
    return data


def expand_pattern(pattern: str) -> list[str]:
    """Files that a pattern names, wildcards in sorted order."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ValueError(f"{pattern} is not a local file: shards are read by random access, so download them first")
    paths = []
    for path in [pattern] if os.path.exists(pattern) else braces(pattern):
        paths += sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
    if not paths:
        raise ValueError(f"no file matches {pattern}: expected tar files")
    return paths


def braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar; `{a,b}.tar` -> a.tar, b.tar; as the shell does."""
    choices: list[list[str]] = []
    for i, part in enumerate(re.split(r"\{([^{}]*(?:\.\.|,)[^{}]*)\}", pattern)):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if i % 2 == 0:
            choices.append([part])
        elif numbers:
            first, last = numbers.groups()
            choices.append([f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split(","))
    return ["".join(parts) for parts in itertools.product(*choices)]
