"""A recipe on small data, and the runs by which it shows that it obeys the laws of recipes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

Arguments = Sequence[str]

COLORS = {"red": (220, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 230), "yellow": (240, 220, 20)}


@dataclass(frozen=True)
class Recipe:
    """A recipe with a small run of it. FOLDER in texts is the folder of its data."""

    name: str
    """Module in `recipes`."""
    write: Callable[[Path], None]
    """Writes the data into a folder."""
    config: str
    """YAML of the small run."""
    given: Arguments = ()
    """Arguments of every run beside --config and --out."""

    def prepare(self, folder: Path) -> Path:
        """Write data and tiny.yaml into the folder."""
        self.write(folder)
        (folder / "tiny.yaml").write_text(self.config.replace("FOLDER", str(folder)))
        return folder

    @property
    def module(self) -> Any:
        return import_module(f"recipes.{self.name}")

    def arguments(self, folder: Path, out: Path | str, *changes: str) -> list[str]:
        """Of a run that writes to `out`, in the folder unless it is absolute."""
        own = ["--config", f"{folder}/tiny.yaml", "--out", str(folder / out), *self.given, *changes]
        return [each.replace("FOLDER", str(folder)) for each in own]

    def train(self, folder: Path, out: Path | str, *changes: str) -> dict:
        return self.module.main(self.module.parse(self.arguments(folder, out, *changes)))


@dataclass(frozen=True)
class Shared:
    """A run in two processes that must equal a run in one."""

    alone: Arguments = ()
    """Arguments of both."""
    apart: Arguments = ()
    """Further arguments of the run in two processes."""
    resumes: int = 0
    """Step of the last checkpoint, from which the run in two processes is taken up once more; 0 for no such run."""
    sharded_modules: int | None = None
    """How many modules FSDP2 wraps; None where no test asks."""


@dataclass(frozen=True)
class Stopped:
    """A run that is stopped before step `at`, with checkpoints every `every` steps."""

    changes: Arguments
    every: int
    at: int
    then: Arguments = ()
    """Further arguments when it is taken up: they change nothing that is learned."""


@dataclass(frozen=True)
class Laws:
    """What the laws of recipes need to know of one."""

    recipe: Recipe
    steps: int
    state: Callable[[Path], dict[str, Tensor]]
    """Folder of a run -> all that it saved, by name."""
    shared: Mapping[str, Shared]
    stopped: Mapping[str, Stopped]
    first: Callable[[Path], None] | None = None
    """Does the runs that others start from, in the folder of the data."""
    cut: Mapping[str, tuple[Arguments, Sequence[int]]] = field(default_factory=dict)
    """Name -> arguments, and micro-batch sizes other than that of the config."""
    half: tuple[Arguments, Arguments] | None = None
    """Arguments of a run in one process, and further ones of a run in two with half precision."""
    half_figures: tuple[str, ...] = ()
    """Figures that half precision keeps near, beside the losses."""
    half_tolerance: dict[str, float] = field(default_factory=lambda: {"rel": 0.03})
    figures: tuple[str, ...] = ()
    """Beginnings of the names of figures in metrics.json that belong to what was learned."""
    figures_count: int = 0
    """How many there are."""
    figures_tolerance: dict[str, float] = field(default_factory=lambda: {"rel": 1e-4})
    state_tolerance: dict[str, float] = field(default_factory=lambda: {"rtol": 1e-2, "atol": 2e-3})
    bad: Callable[[Path, Path], Arguments] | None = None
    """(folder, new folder) -> arguments of a run on data with bad samples."""
    bad_metrics: Callable[[dict], object] = lambda metrics: metrics["skipped"]
    """Metrics of that run -> whether they say what they should."""
    wrong: Sequence[tuple[Arguments, str]] = ()
    """Arguments, and part of the one sentence that refuses them."""


def figures(laws: Laws, metrics: dict) -> dict[str, float]:
    """The figures of a run that belong to what was learned, with the names of nested ones joined by a slash."""
    flat: dict[str, float] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}/{key}", inner)
        elif name.startswith(laws.figures):
            flat[name] = value

    for name, value in json.loads(json.dumps(metrics)).items():
        add(name, value)
    return flat


def write_halves(folder: Path, height: int, width: int, left: int) -> list[dict[str, str]]:
    """Write sixteen images of two colors side by side. Returns rows of a table: image, label (the left color) and caption."""
    rows = []
    for label, color in COLORS.items():
        for other, value in COLORS.items():
            image = Image.new("RGB", (width, height), color)
            image.paste(value, (left, 0, width, height))
            image.save(folder / f"{label}-{other}.png")
            rows.append({"image": f"{label}-{other}.png", "label": label, "caption": f"{label} left, {other} right"})
    return rows


def write_table(file: Path, rows: list[dict[str, str]], *columns: str) -> None:
    """Write a table with these columns."""
    lines = [columns, *([row[column] for column in columns] for row in rows)]
    file.write_text(
        "".join(",".join(f'"{value}"' if "," in value else value for value in line) + "\n" for line in lines)
    )
