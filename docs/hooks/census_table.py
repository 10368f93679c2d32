"""Every model type of the installed transformers that has a vision part, as one page: what of it loads exactly.

python docs/hooks/census_table.py  # writes docs/census.md
"""

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "census.md"
HEAD = """\
# Vision towers of transformers

Every model type of transformers {version} whose configuration has a vision part. "exact": the tests build the model tiny with
unmodified transformers, save it, and find the same tokens, to 1e-5 of their scale, after `vv.load` of the folder (whole), of the
tower saved alone (bare), and after `vv.load_projector` of the folder (connector). "refused": `vv.load` says the reason.
"unknown": no test has it.

{counts}

| type | tower | whole | bare | connector | reason |
|---|---|---|---|---|---|
"""


class Row(NamedTuple):
    """One model type."""

    type: str
    tower: str
    """model_type of its vision part."""
    whole: str
    bare: str = ""
    connector: str = ""
    reason: str = ""


def rows(cases: Iterable[Any], refused: dict[str, str], towers: dict[str, str]) -> list[Row]:
    """One for each of `towers`, a model type and the model_type of its vision part, by name."""
    of_type: dict[str, list[Any]] = {}
    for case in cases:
        of_type.setdefault(case.model_type, []).append(case)
    made = []
    for name, tower in sorted(towers.items()):
        if name in of_type:
            own = of_type[name]
            bare, connector = any(case.bare for case in own), any(case.connector for case in own)
            made.append(Row(name, tower, "exact", "exact" if bare else "", "exact" if connector else ""))
        elif reason := refused.get(name) or refused.get(tower):
            made.append(Row(name, tower, "refused", "refused", "", reason))
        else:
            made.append(Row(name, tower, "unknown"))
    return made


def page() -> str:
    """The page of the installed transformers."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()
    cases = import_module("support.census.cases").CASES.values()
    refused = import_module("vlm_vision.checkpoints.families.all").REFUSED
    found = rows(cases, refused, import_module("support.census.build").towers())
    counts = [f"{sum(row.whole == kind for row in found)} {kind}" for kind in ("exact", "refused", "unknown")]
    head = HEAD.format(version=transformers.__version__, counts=f"{len(found)} model types: {', '.join(counts)}.")
    return head + "".join(f"| {' | '.join(_cell(i, cell) for i, cell in enumerate(row))} |\n" for row in found)


def _cell(column: int, text: str) -> str:
    return f"`{text}`" if column < 2 and text else text


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
