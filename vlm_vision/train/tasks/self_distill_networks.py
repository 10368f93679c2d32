"""Student, teacher, heads and centers of a finished self-distillation, in one file from which another run starts."""

import os
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.position import PositionTable
from vlm_vision.train.tasks.self_distill import SelfDistillation, student_of

NAME = "networks.safetensors"
"""Name of the file in the folder of a run."""


def save_networks(model: SelfDistillation, folder: Path) -> None:
    """Write all weights but those of the earlier teacher of Gram anchoring; the file appears when it is complete."""
    save_file({name: value.contiguous() for name, value in _own(model).items()}, folder / f".{NAME}")
    os.replace(folder / f".{NAME}", folder / NAME)


def load_networks(
    model: SelfDistillation, run: str | Path, *, student: Literal["student", "teacher"] = "student"
) -> None:
    """Give a model the weights that a run left.

    Learned positions of another grid are resized by the encoder's own rule; all else must be the same.

    Args:
        run: folder of a finished self-distillation.
        student: whose weights the student takes, those of the run's student or of its teacher.

    Raises:
        ValueError: no finished run, or one of another architecture, with other heads or centers.
    """
    path = Path(run) / NAME
    if not path.is_file():
        raise ValueError(f"start {run} has no {NAME}: pass the folder of a finished run of recipes.self_distill")
    stored, own = WeightFiles(path), _own(model)
    odd = sorted(own.keys() ^ stored.shapes.keys())
    if odd:
        side = "the run lacks" if odd[0] in own else "only the run has"
        raise ValueError(
            f"start {run} is of another model: {side} {odd[0]}; set student.fields, heads, teacher and "
            "weights as in that run"
        )
    config, found = student_of(model).encoder.config, {}
    for name, value in own.items():
        source = name.replace("student.", "teacher.module.", 1) if student == "teacher" else name
        found[name] = stored.get(source)
        if name.endswith(".position.table"):
            found[name] = _placed(found[name], config)
        if found[name].shape != value.shape:
            raise ValueError(
                f"start {run} is of another model: {name} is {tuple(found[name].shape)} there and {tuple(value.shape)} here"
            )
    model.load_state_dict(found, strict=False)


def _own(model: SelfDistillation) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("earlier.")}


@torch.no_grad()
def _placed(table: Tensor, config: ViTConfig) -> Tensor:
    """The positions (1, P + N, D) of a square of patches, of which all runs are, for the grid of the configuration."""
    prefix = config.position_prefix
    side = round((table.shape[1] - prefix) ** 0.5)
    if (side, side) == config.grid or table.shape[1] != prefix + side * side:
        return table
    positions = PositionTable(prefix=prefix, grid=(side, side), dim=table.shape[2], resize=config.position_resize)
    positions.table.copy_(table)
    return torch.cat(positions(config.grid), dim=1)
