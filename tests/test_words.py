"""Plain English: words that error messages, help texts and docstrings do not use. CONTRIBUTING.md has the rule."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("vlm_vision/files.py").is_file(), reason="reads the sources: run in a checkout"
)

EVERYWHERE = {  # in messages, field docstrings and every other docstring
    "anew": "again",
    "told": "stated, passed, reported",
    "beside": "next to, with, compared with",
    "besides": "in addition to",
    "pictures?": "image",
    "hands?": "passes, returns",
    "at hand": "available",
    "eyes?": "vision encoder",
    "sight": "view, crop",
    "taught": "trained",
    "to be had": "available",
    "go(?:es|ing)? on": "resumes, continues",
    "(?:a|the|each|every|one|per|last|this) looks?": "observation, forward pass",
    "alike": "equal, of the same shape",
    "for good": "permanently",
}
MESSAGES = {  # in messages and field docstrings alone: there a reader has no code around the word
    "given": "got, passed",
    "found": "is missing, does not exist",
    "wanted": "expected, requested",
    "of (?:its|their) own": "separate",
    "who": "name the thing",
    "is said": "state it",
    "are said": "state it",
}
STARTS = r"(Of|What|Who|Whose|By|Whether|How|Where|In which|Their|Its)\b"
"""First words that make a fragment: a help text is a noun phrase or a sentence that stands alone."""
DATA = {Path("vlm_vision/sim/instructions.py")}
"""Text that policies read, not users: it stays as it is, or recordings and results would change."""


def _sources() -> list[Path]:
    paths = {path for root in ("vlm_vision", "projectors", "recipes") for path in Path(root).rglob("*.py")}
    return sorted(paths - DATA)


def _texts(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """(kind, line, text) of each piece of prose: "module", "field", "docstring" or "message"."""
    docstrings: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, statement in zip([None, *body], body, strict=False):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                field = isinstance(node, ast.ClassDef) and isinstance(before, ast.AnnAssign)
                docstrings[statement.value] = (
                    "module" if node is tree and before is None else "field" if field else "docstring"
                )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            kind = docstrings.get(node, "message")
            if kind != "message" or node.value.count(" ") >= 2:
                yield kind, node.lineno, node.value


def _faults(path: Path) -> Iterator[str]:
    for kind, line, text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
        prose = re.sub(r"``[^`]*``|`[^`]*`|https?://\S+", "", text)  # names of code stay as they are
        words = EVERYWHERE | (MESSAGES if kind in ("message", "field") else {})
        for word, better in words.items():
            if match := re.search(rf"(?<![\w.-])({word})(?![\w-])", prose, re.IGNORECASE):
                yield f'{path}:{line}: "{match[1]}" in a {kind}: {better}'
        if kind in ("module", "field") and (match := re.match(STARTS, text)):
            yield f'{path}:{line}: a {kind} docstring starts with "{match[1]}": begin with the noun'


@pytest.mark.parametrize(
    "room", ["projectors", "recipes", *sorted({str(p.parent) for p in Path("vlm_vision").rglob("*.py")})]
)
def test_prose_uses_plain_words(room):
    faults = [
        fault
        for path in _sources()
        if str(path.parent) == room or room in ("projectors", "recipes") and path.parts[0] == room
        for fault in _faults(path)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(("source", "kind"), [
    ('raise ValueError("the picture is not to be had")', "message"),
    ('class A:\n    x: int = 0\n    """Whether to shuffle."""', "field"),
    ('"""How sure a share of successes is."""', "module"),
])  # fmt: skip
def test_the_list_catches(tmp_path, source, kind):
    (tmp_path / "a.py").write_text(source)
    assert any(f"a {kind}" in fault for fault in _faults(tmp_path / "a.py"))
