"""Locks of processes that make one store: the system frees them when a process dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def held(folder: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `name` in a folder, which is made again where the process that finished the store has just removed it.

    The value is False if another process holds the lock and `wait` is False.
    """
    lock = FileLock(folder / name)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=wait)
            break
        except Timeout:
            yield False
            return
        except FileNotFoundError:
            continue
    try:
        yield True
    finally:
        lock.release()
