"""Files and folders, local or by URL of any protocol of fsspec: listed, opened, checked."""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

from vlm_vision.data.images.samples import SUFFIXES
from vlm_vision.data.shards.fetch import MissingFileError, UnreachableError, check, fetch, fetch_temporary, file_system
from vlm_vision.data.stored_image import StoredImage

log = logging.getLogger(__name__)

IMAGES = (*SUFFIXES, ".jfif", ".avif")
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


@dataclass(frozen=True)
class Listed:
    """A file."""

    key: str
    """Path below the folder that is listed, with /."""
    path: str
    """Path, or URL."""


def is_url(path: str) -> bool:
    """Whether it is a URL rather than a local path."""
    return "://" in path


def is_http(path: str) -> bool:
    """Whether it is a URL of the web, in which `?` begins a query and other characters are written as %20 and the like."""
    return path.startswith(("http://", "https://"))


def suffix_of(path: str) -> str:
    """Suffix of a file in lower case, such as ".png"."""
    return os.path.splitext(base_name(path))[1].lower()


def is_video(path: str) -> bool:
    """Whether the name is that of a video."""
    return suffix_of(path) in VIDEOS


def is_readable(path: str) -> bool:
    """Whether the name is that of an image or a video."""
    return suffix_of(path) in IMAGES + VIDEOS


def joined(root: str, path: str) -> str:
    """A path that starts at a folder; a URL and an absolute path stay."""
    if is_url(path) or not root:
        return path
    return f"{root.rstrip('/')}/{path.removeprefix('./')}" if is_url(root) else os.path.join(root, path)


def parent(path: str) -> str:
    """The folder of a file."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)


def base_name(path: str) -> str:
    """Name of a file without its folder."""
    name = (urlsplit(path).path if is_http(path) else path).rstrip("/").rpartition("/")[2]
    return unquote(name) if is_http(path) else name


def walk(root: str, enters: Callable[[str], bool] = lambda key: True) -> Iterator[Listed]:
    """All files below a folder, hidden ones and hidden folders left out, in the order of the bytes of their keys.

    One folder at a time is in memory. Links to folders are followed.

    Args:
        enters: whether to list the folder of a key.

    Raises:
        ValueError: no such folder, one that may not be read, a link to a folder that holds it, a name that is not UTF-8.
        UnreachableError: the folder cannot be listed now.
    """
    listing = _remote_folder if is_url(root) else _local_folder
    yield from _walk(root, "", listing, enters, ())


def _walk(path: str, key: str, listing: Any, enters: Callable[[str], bool], above: tuple[Any, ...]) -> Iterator[Listed]:
    identity, entries = listing(path)
    if identity in above:
        raise ValueError(f"{path} is a link to a folder that holds it: remove the link")
    for _, name, place, is_folder in sorted((_order(name, folder), name, at, folder) for name, at, folder in entries):
        if is_folder and enters(key + name):
            yield from _walk(place, f"{key}{name}/", listing, enters, (*above, identity))
        elif not is_folder:
            yield Listed(key + name, place)


def _order(name: str, is_folder: bool) -> bytes:
    """Bytes to sort the entries of a folder by, so that whole keys are sorted."""
    try:
        return name.encode() + b"/" * is_folder
    except UnicodeEncodeError:
        raise ValueError(f"the file name {name!r} is not UTF-8: rename the file, keys of images are text") from None


def _local_folder(path: str) -> tuple[Any, list[tuple[str, str, bool]]]:
    try:
        stat = os.stat(path)
        with os.scandir(path) as found:
            entries = [(one.name, one.path, one.is_dir()) for one in found if not one.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ValueError(f"folder {path} cannot be listed ({error.strerror}): expected a folder of images") from None
    except OSError as error:
        raise UnreachableError(f"folder {path} cannot be listed ({error.strerror}): start again later") from None
    return (stat.st_dev, stat.st_ino), entries


def _remote_folder(url: str) -> tuple[Any, list[tuple[str, str, bool]]]:
    with reaching(url):
        system, path = file_system(url)
        found = system.ls(path, detail=True)
    entries = []
    for one in found:
        place, is_folder = str(one["name"]), one["type"] == "directory"
        name = base_name(system.unstrip_protocol(place))
        # a store of objects lists a folder as an object of its name, a web server links to other pages
        if name and not name.startswith((".", "?")) and place.strip("/") != path.strip("/"):
            entries.append((name, system.unstrip_protocol(place), is_folder))
    return url, entries


def names_in(url: str) -> list[str]:
    """URLs of the files and folders in a folder by URL. Raises as `walk`."""
    return [place for _, place, _ in _remote_folder(url)[1]]


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn errors of a remote file system into MissingFileError or UnreachableError: its clients raise almost any type."""
    try:
        yield
    except (ValueError, UnreachableError):
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise MissingFileError(f"{url} is missing ({type(error).__name__}): expected a file or a folder") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreachableError(f"{url} cannot be reached ({reason}): start again later, and the run resumes") from error


class LeftOut:
    """Files that are neither images nor videos, counted by suffix."""

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()

    def add(self, path: str) -> None:
        """Count one more file."""
        self.suffixes[suffix_of(path) or "no suffix"] += 1

    def __str__(self) -> str:
        """ "3 .txt, 1 .pdf" """
        ordered = sorted(self.suffixes.items(), key=lambda one: (-one[1], one[0]))
        parts = [f"{number} {suffix}" for suffix, number in ordered[:5]]
        rest = sum(number for _, number in ordered[5:])
        return ", ".join(parts + [f"{rest} others"] * bool(rest)) or "no file"

    def report(self, source: str) -> None:
        """Log a warning with the numbers, if there are any."""
        if self.suffixes:
            log.warning("%s: files that are neither images nor videos are left out: %s", source, self)


@dataclass(frozen=True)
class UrlImage(StoredImage):
    """An image by URL, fetched when it is read."""

    url: str

    def __str__(self) -> str:
        return self.url

    def read(self) -> bytes:
        return fetch_temporary(_quoted(self.url))

    def version(self) -> str:
        check(_quoted(self.url))
        return self.url


@dataclass(frozen=True)
class HeldImage(StoredImage):
    """An image whose bytes were read with those next to it."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        return self.data

    def version(self) -> str:
        return str(len(self.data))


def opened_image(path: str) -> str | StoredImage:
    """An image file, local or by URL, that is read later."""
    return UrlImage(path) if is_url(path) else path


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file to read from: local, or by URL in a temporary copy that is removed at the end.

    Raises:
        ValueError: it does not exist, or may not be read.
        UnreachableError: it cannot be fetched now.
    """
    if is_url(path):
        with tempfile.TemporaryFile() as copy:
            fetch(_quoted(path), copy)
            copy.seek(0)
            yield copy
        return
    try:
        file = open(path, "rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}): expected a file") from None
    with file:
        yield file


@contextmanager
def local_path(path: str) -> Iterator[str]:
    """Path of a local file, or of a temporary copy of one by URL. Raises as `opened`."""
    if not is_url(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=suffix_of(path)) as copy:
        fetch(_quoted(path), copy)  # pyright: ignore[reportArgumentType]
        yield copy.name


def check_place(path: str, *, folder: bool = False) -> None:
    """Raise UnreachableError if a file is gone, or a folder is gone or empty, as the point where a disk was mounted."""
    if not is_url(path):
        try:
            if folder:
                with os.scandir(path) as found:
                    next(found)
            else:
                os.stat(path)
        except (OSError, StopIteration):
            problem = "is gone or empty" if folder else "is gone"
            raise UnreachableError(f"{path} {problem}: make it available, and start again") from None
        return
    try:
        if folder:
            _remote_folder(path)
        else:
            check(_quoted(path))
    except MissingFileError as error:
        raise UnreachableError(f"{error}: make it available, and start again") from None


def check_list(file: str, root: str) -> None:
    """As `check_place`, of a file that lists images, and of the folder that their paths start from, if it is a local one."""
    check_place(file)
    if root and not is_url(root):
        check_place(root, folder=True)


def exists(url: str) -> bool:
    """Whether there is a file at a URL. Raises UnreachableError if that cannot be known now."""
    try:
        check(_quoted(url))
    except MissingFileError:
        return False
    return True


def _quoted(url: str) -> str:
    """A URL of http with spaces and other characters that it may not hold as %20 and the like."""
    return quote(url, safe="%/:?#[]@!$&'()*+,;=~") if is_http(url) else url
