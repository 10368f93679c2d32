"""JSON files, and folders written whole or not at all."""

import errno
import glob
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

CARD, CARD_MARK = "README.md", "<!-- written by vlm_vision"
"""Name of a model card, and the words that begin it after its YAML head."""
MANIFEST = "vlm_vision_manifest.json"
"""Name of the manifest of a saved folder, see `vlm_vision.checkpoints.manifest`."""
_WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
"""Names of the weights that a save writes: one file, or shards with their index."""
_ABANDONED = 24 * 3600
"""Seconds without a change after which a staging folder is of a process that was killed."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a full quota and a limit on the size of a file."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError if the file is missing, too large to be a configuration, or no JSON object."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: a checkpoint folder of this format needs it")
    if path.stat().st_size > 64 * 1024 * 1024:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: expected a configuration file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): download it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def shown(value: object, most: int = 80) -> str:
    """A value in an error message: its repr, cut in the middle if it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 20]} ... {text[-12:]}"


def one_line(error: object, most: int = 380) -> str:
    """The text of an error as one line, cut in the middle if it is long: its end says what to do."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[: most - 145]} ... {text[-140:]}"


def write_json(path: Path, value: object) -> None:
    """Indented, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def is_own_card(path: Path) -> bool:
    """Whether a file is a model card of this library, not a README.md that someone wrote."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.sub(r"\A---\n.*?\n---\s*", "", text, flags=re.DOTALL).startswith(CARD_MARK)


def check_folder(folder: str | Path) -> None:
    """Raise ValueError if a folder to write is a file, or lies below one."""
    for path in (Path(folder), *Path(folder).parents):
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"{path} is a file: choose a folder to save to")
            return


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A staging folder whose contents move into `folder` only when the block ends without an error, config.json after all
    but the manifest: without it no folder is read, so that a kill in between leaves none that is half old and half new.

    A model card does not replace a README.md that someone wrote. Weights of an earlier save under other names are removed.

    Raises:
        ValueError: `folder` is a file.
        OSError: no room or no permission to write; what was in `folder` is unchanged.
    """
    check_folder(folder)
    with _staging(folder) as staging:
        yield staging
        folder.mkdir(exist_ok=True)
        names = {item.name for item in staging.iterdir()}
        if "config.json" in names:
            (folder / "config.json").unlink(missing_ok=True)
            for item in folder.iterdir():
                if re.fullmatch(_WEIGHTS, item.name) and item.name not in names:
                    item.unlink()
        for item in sorted(staging.iterdir(), key=lambda item: (item.name == MANIFEST, item.name == "config.json")):
            target = folder / item.name
            if item.name == CARD and is_own_card(item) and target.exists() and not is_own_card(target):
                continue
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(item, target)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A staging folder that becomes `folder` in one step, when the block ends without an error.

    Raises:
        ValueError: `folder` already exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists: choose a new folder")
    with _staging(folder) as outer:  # which others may not read
        staging = outer / folder.name
        staging.mkdir()
        yield staging
        os.replace(staging, folder)


def _remove_abandoned(folder: Path, mine: Path) -> None:
    """Remove staging folders for `folder` in which nothing was written for a day: their processes were killed."""
    for other in folder.parent.glob(f".{glob.escape(folder.name)}.????????"):
        try:
            newest = max(path.stat().st_mtime for path in (other, *other.rglob("*")))
        except OSError:
            continue
        if other != mine and other.is_dir() and time.time() - newest > _ABANDONED:
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A hidden folder next to `folder`, removed at the end."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror}): choose another folder") from None
    _remove_abandoned(folder, staging)
    try:
        yield staging
    except (OSError, SafetensorError) as error:
        reason = (error.strerror or "") if isinstance(error, OSError) else str(error)
        if error.errno not in _NO_ROOM if isinstance(error, OSError) else "(os error" not in reason:
            raise
        raise OSError(f"{folder} cannot be written ({reason}): make room; it is as it was before") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
