"""The runs of each recipe by which it shows that it obeys the laws; each is done once."""

from pathlib import Path

import pytest
import torch

from support.two_processes import launch

from . import contrastive, conversations, distill, mae, self_distill, supervised, vla
from .recipe import Laws, figures

RECIPES = {
    laws.recipe.name: laws
    for laws in (
        conversations.ALIGN_LAWS,
        conversations.VQA_LAWS,
        contrastive.LAWS,
        mae.LAWS,
        distill.LAWS,
        self_distill.LAWS,
        supervised.LAWS,
        vla.LAWS,
    )
}


class Bench:
    """The data of a recipe and its runs, each done once."""

    def __init__(self, laws: Laws, folder: Path):
        self.laws, self.folder, self.runs = laws, laws.recipe.prepare(folder), {}
        self.shared: dict[str, dict] | AssertionError | None = None
        if laws.first is not None:
            laws.first(folder)

    def alone(self, *changes: str) -> tuple[dict, Path]:
        """Metrics and folder of a run in one process."""
        if changes not in self.runs:
            out = self.folder / f"alone {len(self.runs)}"
            self.runs[changes] = self.laws.recipe.train(self.folder, out, *changes), out
        return self.runs[changes]

    def together(self) -> dict[str, dict]:
        """Metrics of all runs in two processes, by name; those that resume are taken up once more as "NAME, again"."""
        if self.shared is None:
            try:
                self.shared = self._together()
            except AssertionError as error:
                self.shared = error
        if isinstance(self.shared, AssertionError):
            raise self.shared
        return self.shared

    def _together(self) -> dict[str, dict]:
        laws = self.laws
        runs = {name: (*one.alone, *one.apart) for name, one in laws.shared.items()}
        if laws.half is not None:
            runs["half precision"] = (*laws.half[0], *laws.half[1])
        given = {name: laws.recipe.arguments(self.folder, f"two {name}", *changes) for name, changes in runs.items()}
        given |= {f"{name}, again": given[name] for name, one in laws.shared.items() if one.resumes}
        return launch(
            self.folder, {name: {"recipe": laws.recipe.name, "arguments": one} for name, one in given.items()}
        )

    def check_same(self, metrics: dict, out: Path, wanted: dict, wanted_out: Path) -> None:
        """Two runs learned the same, up to rounding: losses, figures and all that they saved."""
        laws = self.laws
        assert len(metrics["losses"]) == laws.steps
        assert metrics["losses"] == pytest.approx(wanted["losses"], rel=1e-4)
        assert figures(laws, metrics) == pytest.approx(figures(laws, wanted), **laws.figures_tolerance)
        assert len(figures(laws, wanted)) == laws.figures_count
        ours, theirs = laws.state(out), laws.state(wanted_out)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(
                ours[name], value, **laws.state_tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )
