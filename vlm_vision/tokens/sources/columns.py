"""Columns of a table: which holds the image, the label, the caption and the id, and the form of labels."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_vision.data.sample import caption_of

USUAL = {
    "path": ("path", "image", "file", "file_name", "filepath", "filename", "picture", "img", "images"),
    "label": ("label", "class"),
    "caption": ("caption", "text"),
    "id": ("id", "key"),
}
"""Role -> usual names of its column; the first that exists is used. An id is the key only where it is chosen."""
_WHOLE = re.compile(r"0|-?[1-9]\d{0,17}")


@dataclass(frozen=True)
class Choice:
    """Columns that the user names; empty for the usual ones."""

    path: str = ""
    label: str = ""
    caption: str = ""
    id: str = ""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table; empty for none."""

    path: str
    label: str
    caption: str
    id: str
    """Column of the keys; empty if the paths are the keys."""

    @classmethod
    def of(cls, known: Sequence[str], choice: Choice, source: str, preferred: Sequence[str] = ()) -> "Columns":
        """The columns that are chosen, else those with usual names.

        Args:
            known: the columns of the table.
            preferred: columns that hold images; the usual one of them, or the only one, is used.

        Raises:
            ValueError: a chosen column that the table lacks, or no column for the image.
        """
        for role in USUAL:
            if (name := getattr(choice, role)) and name not in known:
                raise ValueError(f"{source} has no column {name!r}: it has {', '.join(map(str, known))}")
        usual = {role: next((name for name in names if name in known), "") for role, names in USUAL.items()}
        images = [name for name in USUAL["path"] if name in preferred] or list(preferred[: len(preferred) == 1])
        path = choice.path or next(iter(images), "") or ("" if preferred else usual["path"])
        if not path:
            expected = f"one of {', '.join(preferred)}" if preferred else f"an image in {' or '.join(USUAL['path'])}"
            raise ValueError(
                f"{source} has the columns {', '.join(map(str, known))}: expected {expected}; choose one with --path-column"
            )
        return cls(path, choice.label or usual["label"], choice.caption or usual["caption"], choice.id)


def are_whole(labels: Iterable[Any]) -> bool:
    """Whether all labels are whole numbers, so that they are kept as int; with any other, all are text. `007` is text."""
    return all(isinstance(one, bool) or _WHOLE.fullmatch(_text(one)) for one in labels if _text(one))


def label_of(value: Any, whole: bool) -> int | str | None:
    """A label; None for an empty one."""
    text = _text(value)
    return None if not text else int(text) if whole else text


def caption_text(value: Any) -> str | None:
    """A caption, the first of a list; None for an empty one."""
    return caption_of(value) or None


def key_text(value: Any, where: str) -> str:
    """A key of an id column. Raises ValueError for one that is neither text nor a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"{where} has the id {value!r}: expected text or a whole number")
    return str(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()
