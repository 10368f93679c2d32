"""JSON files, and folders written whole or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CARD, CARD_MARK = "README.md", "<!-- written by vlm_vision"
"""Name of a model card, and the words that begin it after its YAML head."""


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
    """A staging folder whose contents move into `folder` only when the block ends without an error, config.json last.

    A model card does not replace a README.md that someone wrote.
    """
    check_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging
        folder.mkdir(exist_ok=True)
        for item in sorted(staging.iterdir(), key=lambda item: item.name == "config.json"):
            target = folder / item.name
            if item.name == CARD and is_own_card(item) and target.exists() and not is_own_card(target):
                continue
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(item, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A staging folder that becomes `folder` in one step, when the block ends without an error.

    Raises:
        ValueError: `folder` already exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists: choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))  # which others may not read
    try:
        staging = outer / folder.name
        staging.mkdir()
        yield staging
        os.replace(staging, folder)
    finally:
        shutil.rmtree(outer, ignore_errors=True)
