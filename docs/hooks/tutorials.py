"""mkdocs hook: each script of docs/tutorials in percent format becomes a page and a notebook."""

import json
import re
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def on_files(files: Any, config: Any) -> Any:
    """Add a page and a notebook for each script."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]  # where the extra docs is installed

    for script in sorted(TUTORIALS.glob("*.py")):
        for suffix, make in ((".md", page), (".ipynb", notebook)):
            content = make(script)
            files.append(File.generated(config, f"tutorials/{script.stem}{suffix}", content=content))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Links to a script, which work where the repository is read, lead to its page."""
    return re.sub(r"\((tutorials/\w+)\.py\)", r"(\1.md)", markdown)


def cells(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell, "markdown" or "code"; Markdown without the signs of a comment."""
    found = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            found.append(("markdown", "\n".join(lines)))
        else:
            found.append(("code", body.strip()))
    return found


def page(script: Path) -> str:
    """Markdown of a script."""
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells(script.read_text())]
    end = f"[This page as a notebook]({script.stem}.ipynb). The script is `docs/tutorials/{script.name}`; the tests run it."
    return "\n\n".join([*parts, end]) + "\n"


def notebook(script: Path) -> str:
    """The script as a Jupyter notebook."""
    made = []
    for number, (kind, text) in enumerate(cells(script.read_text())):
        cell = {"cell_type": kind, "id": str(number), "metadata": {}, "source": text}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}, indent=1)
