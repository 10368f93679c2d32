"""The end of a run: metrics.json, and the model cards of the folders that it saved."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints.hf.card import record_training
from vlm_vision.checkpoints.hub import hub_id
from vlm_vision.files import write_json
from vlm_vision.train.settings import Training, as_plain

_FOLDERS = ("model", "average", "adapter")
"""Folders that recipes save below `out`."""
_NOT_FIGURES = (
    "first_step",
    "processes",
    "seconds",
    "train_seconds",
    "moments",
    "losses",
    "sharded_modules",
    "skipped",
)
"""Metrics that state how the run went, not what the model is worth."""
_SOURCES = ("start", "source", "teacher", "image_source", "projector_source", "tokenizer")
"""Names of settings that hold models: what a run starts from, and teachers."""


def write_results(settings: Training, recipe: str, metrics: dict[str, Any]) -> None:
    """Write metrics.json, and training and figures into the model cards of the run.

    Args:
        recipe: name of the recipe, as `vlm-vision train` takes it.
    """
    out = Path(settings.out)
    write_json(out / "metrics.json", metrics)
    trained, figures = training(settings, recipe), dict(flat_figures(metrics))
    warning = metrics.get("warning")
    remarks = [f"Measured at the end of the run, on {trained['test data']}." if "test data" in trained else ""]
    remarks += ["Names are those of metrics.json.", f"Warning: {warning}" if isinstance(warning, str) else ""]
    for name in _FOLDERS:
        record_training(out / name, trained, figures, " ".join(filter(None, remarks)))


def training(settings: Training, recipe: str) -> dict[str, str]:
    """Lines of the section "Trained on"; names of data and models, no paths of the machine."""
    plain = as_plain(settings)
    data, before = plain.get("data", {}), list(dict.fromkeys(_sources(plain)))
    rows = {"recipe": f"`vlm-vision train {recipe}`", "data": _data(data.get("train", ""))}
    if test := data.get("test"):
        rows["test data"] = _data(test)
    elif episodes := data.get("test_episodes"):
        rows["test data"] = f"{episodes} episodes of each data set that were not trained on"
    if before:
        rows["other models"] = ", ".join(before)
    rows["steps"] = f"{settings.steps}, each of {settings.batch_size} samples"
    rows["seed"] = str(settings.seed)
    return rows


def flat_figures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of each figure; names of nested ones are joined by a slash."""
    for name, value in metrics.items():
        if name in _NOT_FIGURES or isinstance(value, bool):
            continue
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", figure) for inner, figure in flat_figures(value))
        elif isinstance(value, int | float):
            yield str(name), value


def public_name(source: str) -> str:
    """A source without the path of the machine: a hub id, a name, or the last part of a path or address.

    Args:
        source: folder, file, address, hub id or name; "a + b" for several.
    """
    if " + " in source:
        return " + ".join(map(public_name, source.split(" + ")))
    if source.startswith("hf:") or hub_id(source):
        return source
    parts = [part for part in re.split(r"[/\\]", re.sub(r"[?#].*", "", source)) if part not in ("", ".", "..", "~")]
    if len(parts) > 1 and parts[-1] in _FOLDERS:
        return f"{parts[-1]} of the run {parts[-2]}"
    return parts[-1] if parts else "a local folder"


def _data(source: object) -> str:
    """Training or test data in words: a source, or names with their sources."""
    if isinstance(source, Mapping):
        return ", ".join(f"{name} ({public_name(str(value))})" for name, value in source.items())
    return public_name(str(source))


def _sources(settings: Mapping[str, Any]) -> Iterator[str]:
    """Names of the models in the settings."""
    for name, value in settings.items():
        if name in _SOURCES and isinstance(value, str) and value:
            yield public_name(value)
        for inner in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inner, Mapping):
                yield from _sources(inner)
