"""All settings of all recipes as one page, from the dataclasses and the texts under their fields.

python docs/hooks/settings_table.py  # writes docs/settings.md
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

RECIPES = (
    "align", "vqa", "vla", "vla_eval", "contrastive", "self_distill", "mae", "supervised", "distill", "probe"
)  # fmt: skip
PAGE = Path(__file__).parents[1] / "settings.md"
HEAD = """\
# Settings

Every recipe takes its settings from `--config FILE.yaml` and from `--key value`; the command line wins. Keys with a dot belong to a
group: `--data.train FILE`, or `data: {train: FILE}` in YAML. An unknown key is an error.

This page is made from the code by `python docs/hooks/settings_table.py`.
"""


def table() -> str:
    """The page."""
    users: dict[tuple[str, type], list[str]] = {}
    for recipe in RECIPES:
        for key in _groups("", config_of(recipe)):
            users.setdefault(key, []).append(recipe)
    parts = [HEAD]
    for (prefix, kind), recipes in users.items():
        rows = [_row(prefix, kind, field) for field in _own(kind) if not is_dataclass(_hint(kind, field))]
        if rows:
            title = f"`{prefix}`" if prefix else "Settings"
            parts.append(f"## {title} of {', '.join(recipes)}\n\n{_summary(kind)}\n")
            parts.append("\n".join(["| key | type | default | what it is |", "|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def config_of(recipe: str) -> type:
    """The dataclass that a recipe's `main` takes."""
    return get_type_hints(import_module(f"recipes.{recipe}").main)["config"]


def _groups(prefix: str, kind: type) -> Iterator[tuple[str, type]]:
    """(prefix, class) of a dataclass, those that it extends, and those of its fields."""
    for one in reversed(kind.__mro__):
        if is_dataclass(one):
            yield prefix, one
    for field in fields(kind):
        inner = _hint(kind, field)
        if isinstance(inner, type) and is_dataclass(inner):
            yield from _groups(f"{prefix}{field.name}.", inner)


def _own(kind: type) -> list[Field]:
    """Fields that a class itself declares."""
    declared = kind.__dict__.get("__annotations__", {})
    return [field for field in fields(kind) if field.name in declared]


def _hint(kind: type, field: Field) -> Any:
    return get_type_hints(kind)[field.name]


def _row(prefix: str, kind: type, field: Field) -> str:
    hint = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    shown = " ".join(hint.replace("typing.", "").split()).replace("|", "\\|")
    return f"| `{prefix}{field.name}` | `{shown}` | {_default(field)} | {field_texts(kind).get(field.name, '')} |"


def _default(field: Field) -> str:
    if field.default is not MISSING:
        return f"`{field.default!r}`".replace("|", "\\|")
    if field.default_factory is not MISSING:
        return f"`{field.default_factory()!r}`"
    return "required"


def field_texts(kind: type) -> dict[str, str]:
    """Field -> the text under it, in one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    texts = {}
    for field, after in zip(body, body[1:], strict=False):
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
            texts[field.target.id] = " ".join(text.split()).replace("|", "\\|")
    return texts


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(table())
