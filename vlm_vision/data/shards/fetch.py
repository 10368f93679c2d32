"""A file by URL, fetched whole: http and https by the standard library, any other protocol of fsspec (s3, gs, hf)."""

import http.client
import io
import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO, NamedTuple

log = logging.getLogger(__name__)

RETRY_DELAYS = (1, 2, 4, 8, 16, 32, 64)
"""Seconds before each new attempt; the count begins again after progress."""
TIMEOUT = 60
"""Seconds without a byte after which a connection is closed."""
CHUNK_BYTES = 1 << 20
RETRYABLE_STATUS = (408, 425, 429)
"""Status codes below 500 after which a retry may succeed."""


class MissingFileError(ValueError):
    """The file does not exist or may not be read: a retry cannot succeed."""


class UnreachableError(OSError):
    """A file cannot be fetched now, or there is no room for it: stop, and resume later."""


class _Source(NamedTuple):
    file: BinaryIO
    start: int
    """Offset of `file` in the whole file, in bytes."""
    size: int | None
    """Bytes of the whole file; None if unknown."""
    version: str
    """Version of the file; empty if unknown."""


def fetch(url: str, out: BinaryIO) -> None:
    """Copy a file to an empty `out`; after a broken connection continue there, if the server can.

    Raises:
        MissingFileError: HTTP 404 and the like.
        UnreachableError: no connection, and no progress after `RETRY_DELAYS`.
        ValueError: a protocol that fsspec lacks, or that needs another package.
    """
    version, furthest, failures = "", 0, 0
    while True:
        try:
            with _opened(url, out.tell() if version else 0, version) as source:
                version = source.version
                out.seek(source.start)
                out.truncate()
                shutil.copyfileobj(source.file, out, CHUNK_BYTES)
                out.flush()
            if source.size is None or out.tell() == source.size:
                return
            reason = f"the connection ended after {out.tell()} of {source.size} bytes"
        except urllib.error.HTTPError as error:
            reason, version = f"HTTP {error.code} {error.reason}", "" if error.code == 416 else version
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        if out.tell() > furthest:
            furthest, failures = out.tell(), 0
        if failures == len(RETRY_DELAYS):
            raise UnreachableError(f"{url} cannot be fetched ({reason}): start again later, and the run resumes")
        log.info("%s: %s; trying again in %s s", url, reason, RETRY_DELAYS[failures])
        time.sleep(RETRY_DELAYS[failures])
        failures += 1


def fetch_temporary(url: str) -> bytes:
    """A small file. Raises as `fetch`."""
    out = io.BytesIO()
    fetch(url, out)
    return out.getvalue()


def check(url: str) -> None:
    """Raise MissingFileError or UnreachableError, as `fetch`, if a file cannot be read now; none of it is copied."""
    try:
        with _opened(url, 0, ""):
            pass
    except MissingFileError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url} cannot be reached ({error}): start again later, and the run resumes") from None


def size_of(url: str) -> int | None:
    """Bytes of a file; None if unknown."""
    try:
        if not _is_http(url):
            system, path = file_system(url)
            return system.info(path).get("size")
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT) as response:
            return _length(response)
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, http.client.HTTPException):
        pass
    return None


@contextmanager
def _opened(url: str, start: int, version: str) -> Iterator[_Source]:
    """The file from `start` on, or from 0 if the version differs or the server cannot."""
    if not _is_http(url):
        system, path = file_system(url)
        try:
            about = system.info(path)
            with system.open(path, "rb") as file:
                current = str(about.get("ETag") or about.get("mtime") or about.get("size"))
                start = start if current == version else 0
                file.seek(start)
                yield _Source(file, start, about.get("size"), current)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise MissingFileError(f"{url} is missing ({type(error).__name__})") from None
        return
    wanted = {"Range": f"bytes={start}-", "If-Range": version} if start else {}
    request = urllib.request.Request(url, headers={"User-Agent": "vlm_vision"} | wanted)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code < 500 and error.code not in (*RETRYABLE_STATUS, 416):
            raise MissingFileError(f"{url} is missing (HTTP {error.code} {error.reason})") from None
        raise
    with closing(response):
        start = start if response.status == 206 else 0
        length, tag = _length(response), response.headers.get("ETag", "")
        current = response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
        yield _Source(response, start, None if length is None else start + length, current)


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _length(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length")
    return int(length) if length else None


def file_system(url: str):
    """The file system of fsspec for a URL, and the path in it.

    Raises:
        ValueError: a protocol that fsspec lacks, or that needs another package.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url} needs another package: {error}") from None
    except ValueError as error:
        raise ValueError(f"{url} cannot be read ({error}): expected https:// or a protocol of fsspec") from None
