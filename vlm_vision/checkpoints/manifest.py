"""The manifest of a saved folder: size and SHA-256 of each file, and SHA-256 of each tensor of safetensors files.

It shows damage and changes, by accident or on purpose. It is no signature: whoever can change the folder can write its manifest.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm_vision.files import MANIFEST, read_json, write_json

State = Literal["same", "changed", "missing", "extra"]

_CHUNK = 1 << 20
_LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, by the format's definition."""


@dataclass(frozen=True)
class FileState:
    """One file of a folder, compared with the manifest."""

    name: str
    """Path from the folder, with forward slashes."""
    state: State
    """"same", "changed", "missing" (in the manifest alone) or "extra" (in the folder alone)."""
    tensors: tuple[tuple[str, State], ...] = ()
    """Tensors of a changed safetensors file that are not the same."""

    def __str__(self) -> str:
        tensors = ", ".join(f"{name} {state}" for name, state in self.tensors[:5])
        more = f" and {len(self.tensors) - 5} more" if len(self.tensors) > 5 else ""
        return f"{self.name} {self.state}" + (f" ({tensors}{more})" if tensors else "")


def write_manifest(folder: str | Path) -> None:
    """Write the manifest of all files of a folder. Equal folders have equal manifests."""
    folder = Path(folder)
    names = _files(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        entries = pool.map(lambda name: _entry(folder / name), names)
    write_json(folder / MANIFEST, {"files": dict(zip(names, entries, strict=True))})


def renew_manifest(folder: str | Path, name: str) -> None:
    """Write the entry of one file again, which was changed on purpose. Without a manifest nothing is written."""
    path = Path(folder) / MANIFEST
    if path.is_file():
        files = _read(path)
        files[name] = _entry(Path(folder) / name)
        write_json(path, {"files": dict(sorted(files.items()))})


def verify(folder: str | Path) -> list[FileState]:
    """Every file of a folder, compared with its manifest, by name. Hidden files and folders are left out.

    Raises:
        ValueError: no folder, a folder without a manifest, or a damaged manifest.
        OSError: a file that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "a single file, which has no manifest" if folder.exists() else "not a folder"
        raise ValueError(f"{folder} is {what}: expected a folder that save_pretrained wrote")
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} has no {MANIFEST} to compare it with: load it without verify, and save it again")
    stored, names = _read(path), _files(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        entries = dict(zip(names, pool.map(lambda name: _entry(folder / name), names), strict=True))
    return [_compared(name, stored.get(name), entries.get(name)) for name in sorted({*stored, *entries})]


def check(folder: str | Path) -> None:
    """Raise ValueError, with the first names, unless every file of the folder is the same; otherwise as `verify`."""
    if wrong := [str(one) for one in verify(folder) if one.state != "same"]:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{folder} is not as it was saved: {', '.join(wrong[:3])}{more}; restore it, or load it without verify"
        )


def names_in(folder: str | Path) -> list[str]:
    """Files that the manifest of a folder names; none without a manifest. Raises ValueError for a damaged one."""
    path = Path(folder) / MANIFEST
    return list(_read(path)) if path.is_file() else []


def _compared(name: str, stored: dict[str, Any] | None, now: dict[str, Any] | None) -> FileState:
    if stored is None or now is None:
        return FileState(name, "extra" if stored is None else "missing")
    if (stored["size"], stored["sha256"]) == (now["size"], now["sha256"]):
        return FileState(name, "same")
    before, after = stored.get("tensors") or {}, now.get("tensors") or {}
    tensors: list[tuple[str, State]] = []
    if before and after:
        for tensor in sorted({*before, *after}):
            if tensor not in after or tensor not in before:
                tensors.append((tensor, "missing" if tensor in before else "extra"))
            elif before[tensor] != after[tensor]:
                tensors.append((tensor, "changed"))
    return FileState(name, "changed", tuple(tensors))


def _read(path: Path) -> dict[str, Any]:
    files = read_json(path).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("tensors", {}), dict)
        for entry in files.values()
    ):
        raise ValueError(f"{path} is damaged: expected the size and the sha256 of each file; restore it")
    return files


def _files(folder: Path) -> list[str]:
    """Files below a folder but its manifest, sorted."""
    names = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(name for name in names if name != MANIFEST)


def _entry(path: Path) -> dict[str, Any]:
    """Size and hashes of a file, read once."""
    digest, size, tensors = hashlib.sha256(), 0, {}
    with path.open("rb") as file:
        header = _header(file.read(8), file, path) if path.suffix == ".safetensors" else None
        file.seek(0)
        for name, kind, first, last in _places(header, 8 + len(header)) if header else ():
            size += _hash(file, first - size, digest)  # the header, or nothing
            own = hashlib.sha256()
            size += _hash(file, last - first, digest, own)
            tensors[name] = f"{kind} {own.hexdigest()}"
        size += _hash(file, path.stat().st_size - size, digest)
    entry: dict[str, Any] = {"size": size, "sha256": digest.hexdigest()}
    return entry | ({"tensors": dict(sorted(tensors.items()))} if tensors else {})


def _hash(file: Any, size: int, *digests: Any) -> int:
    """Read `size` bytes into the digests. Returns the number of bytes read."""
    read = 0
    while read < size and (data := file.read(min(_CHUNK, size - read))):
        read += len(data)
        for digest in digests:
            digest.update(data)
    return read


def _header(length: bytes, file: Any, path: Path) -> bytes | None:
    """The header of a safetensors file as it is stored; None for a damaged one."""
    size = int.from_bytes(length, "little")
    if len(length) < 8 or size > min(_LARGEST_HEADER, path.stat().st_size - 8):
        return None
    return file.read(size)


def _places(header: bytes, start: int) -> Iterable[tuple[str, str, int, int]]:
    """(name, dtype and shape, first byte, byte after the last) of each tensor, in the order of the file; none of a damaged one."""
    places = []
    try:
        described: Mapping[str, Any] = json.loads(header)
        for name, one in described.items():
            if name != "__metadata__":
                first, last = (start + int(place) for place in one["data_offsets"])
                places.append((name, f"{one['dtype']}[{','.join(map(str, one['shape']))}]", first, last))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    places.sort(key=lambda place: place[2:])
    ends = [start, *(last for _, _, _, last in places)]
    ordered = all(end <= first <= last for end, (_, _, first, last) in zip(ends, places, strict=False))
    return places if ordered else []
