"""The result of a check of a source: facts, errors and doubts, as a table and as JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3
"""Names that are shown of each kind of finding."""


@dataclass
class Finding:
    """One kind of problem."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """Sentences on the first cases, with their names."""

    def __str__(self) -> str:
        more = f"; and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        return "; ".join(one[:300] for one in self.examples) + more


@dataclass
class DataReport:
    """What a source holds. Errors stop a run, doubts are warnings."""

    source: str
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and measurements, by name."""
    errors: dict[str, Finding] = field(default_factory=dict)
    doubts: dict[str, Finding] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    """Row that cannot be used -> reason."""

    def error(self, kind: str, sentence: str, row: int | None = None) -> None:
        """Add an error, which makes a row unusable if there is one."""
        _add(self.errors, kind, sentence)
        if row is not None:
            self.bad.setdefault(row, sentence)

    def doubt(self, kind: str, sentence: str, count: int = 1) -> None:
        """Add a doubt."""
        _add(self.doubts, kind, sentence, count)

    def table(self) -> str:
        """As text, a line for each fact and each kind of finding."""
        width = max(map(len, [*self.facts, *self.errors, *self.doubts]), default=0) + 2
        lines = [f"{self.source}", *(f"  {name:{width}} {_shown(value)}" for name, value in self.facts.items())]
        for what, findings in (("error", self.errors), ("doubt", self.doubts)):
            lines += [f"  {kind:{width}} {one.count:,} ({what}): {one}" for kind, one in findings.items()]
        if not self.errors and not self.doubts:
            lines.append("  nothing is wrong with it, and nothing doubtful")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `from_dict` makes it again."""
        findings = {
            name: {kind: {"count": one.count, "examples": one.examples} for kind, one in held.items()}
            for name, held in (("errors", self.errors), ("doubts", self.doubts))
        }
        bad = {str(row): reason for row, reason in self.bad.items()}
        return {"source": self.source, "facts": self.facts, **findings, "bad": bad}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "DataReport":
        """Raises KeyError or TypeError for what `to_dict` did not make."""
        errors, doubts = ({kind: Finding(**one) for kind, one in state[name].items()} for name in ("errors", "doubts"))
        bad = {int(row): reason for row, reason in state["bad"].items()}
        return cls(state["source"], dict(state["facts"]), errors, doubts, bad)


def first_error(reports: Iterable[DataReport]) -> str:
    """The first error of the first report that has one; empty for none."""
    for report in reports:
        for kind, one in report.errors.items():
            return f"{report.source}: {one.count:,} {kind}, the first: {one.examples[0][:300]}"
    return ""


def _add(findings: dict[str, Finding], kind: str, sentence: str, count: int = 1) -> None:
    one = findings.setdefault(kind, Finding())
    one.count += count
    if len(one.examples) < EXAMPLES:
        one.examples.append(sentence)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
