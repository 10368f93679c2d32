"""Lists of files: a folder, a pattern, paths, the lines of a text file."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from vlm_vision.tokens.sources.places import (
    LeftOut,
    Listed,
    base_name,
    check_list,
    check_place,
    is_http,
    is_readable,
    is_url,
    joined,
    opened,
    walk,
)


def has_wildcards(path: str) -> bool:
    """Whether a path is a pattern. In a URL of the web `?` begins a query."""
    return any(sign in path for sign in ("*[" if is_http(path) else "*?["))


class FileList(Protocol):
    """Images and videos in an order that is the same in every run."""

    @property
    def kind(self) -> str:
        """Noun for an error, such as "a folder of images"."""
        ...

    def files(self) -> Iterator[Listed]:
        """Every file. Raises ValueError if there is none."""
        ...

    def check(self) -> None:
        """As `Source.check`."""
        ...


@dataclass(frozen=True)
class FolderFiles:
    """All images and videos below a folder, local or by URL; a key is the path below it."""

    root: str
    kind = "a folder of images"

    def files(self) -> Iterator[Listed]:
        yield from _readable(walk(self.root), self.root, "in it or below")

    def check(self) -> None:
        check_place(self.root, folder=True)


@dataclass(frozen=True)
class Pattern:
    """Images and videos whose path matches a pattern: `*`, `?` and `[...]` inside a name, `**` for any folders.

    A key is the path below the fixed part, the folders before the first wildcard.
    """

    pattern: str
    kind = "a pattern of files"

    @property
    def root(self) -> str:
        """The fixed part."""
        return self._split()[0]

    def _split(self) -> tuple[str, list[str]]:
        parts = self.pattern.split("/")
        first = next(i for i, part in enumerate(parts) if has_wildcards(part))
        return "/".join(parts[:first]) or ("/" if first else "."), parts[first:]

    def matches(self) -> Iterator[Listed]:
        """Every file that matches, of any kind."""
        root, parts = self._split()

        def enters(key: str) -> bool:
            return _matches(key.split("/"), parts, begins=True)

        for one in walk(root, enters):
            if _matches(one.key.split("/"), parts):
                place = one.path.removeprefix("./") if root == "." else one.path
                yield Listed(one.key, place)

    def files(self) -> Iterator[Listed]:
        yield from _readable(self.matches(), self.pattern, "among its matches")

    def check(self) -> None:
        check_place(self.root, folder=True)


def _matches(names: list[str], parts: list[str], *, begins: bool = False) -> bool:
    """Whether names match the parts of a pattern; with `begins`, whether names below them may match."""
    if not names:
        return begins or all(part == "**" for part in parts[:-1]) and parts[-1:] in ([], ["**"])
    if not parts:
        return False
    if parts[0] == "**":
        return _matches(names[1:], parts, begins=begins) or _matches(names, parts[1:], begins=begins)
    return fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:], begins=begins)


def _readable(files: Iterator[Listed], source: str, where: str) -> Iterator[Listed]:
    left_out, count = LeftOut(), 0
    for one in files:
        if is_readable(one.path):
            count += 1
            yield one
        else:
            left_out.add(one.path)
    if not count:
        raise ValueError(f"{source} holds no image and no video {where}: it holds {left_out}")
    left_out.report(source)


@dataclass(frozen=True)
class Paths:
    """Single files; a key is the name of the file."""

    paths: tuple[str, ...]
    kind = "an image"

    def files(self) -> Iterator[Listed]:
        for path in self.paths:
            yield Listed(base_name(path), path)

    def check(self) -> None:
        for folder in sorted({os.path.dirname(path) or "." for path in self.paths if not is_url(path)}):
            check_place(folder, folder=True)
        for path in self.paths[:1]:
            if is_url(path):
                check_place(path)


@dataclass(frozen=True)
class Lines:
    """A text file with a path or URL in each line, which is the key. Blank lines are left out.

    Args:
        root: folder that the paths start from.
    """

    file: str
    root: str
    kind = "a list of images"

    def files(self) -> Iterator[Listed]:
        count = 0
        with opened(self.file) as file, io.TextIOWrapper(file, "utf-8-sig") as text:
            try:
                for number, line in enumerate(text, start=1):
                    key = line.strip("\r\n")
                    if not key.strip():
                        continue
                    if "\0" in key:
                        raise ValueError(
                            f"{self.file}, line {number}, holds a zero byte: expected the path of an image"
                        )
                    count += 1
                    yield Listed(key, joined(self.root, key.strip()))
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.file} is not text in UTF-8 ({error}): expected a path in each line") from None
        if not count:
            raise ValueError(f"{self.file} holds no line: expected the path of an image in each")

    def check(self) -> None:
        check_list(self.file, self.root)
