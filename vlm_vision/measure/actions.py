"""Error of a policy's actions compared with recorded ones, with right, shuffled and blank images."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from vlm_vision.encoder import eval_mode
from vlm_vision.robot.window import Window
from vlm_vision.vla.batch import ActionCollator
from vlm_vision.vla.model import VisionLanguageActionModel

GRAY = np.full((32, 32, 3), 128, dtype=np.uint8)


@torch.no_grad()
def open_loop(
    accelerator: Accelerator, model: nn.Module, windows: Sequence[Window], collate: ActionCollator, *, batch_size: int
) -> dict[str, float]:
    """Mean absolute difference of normalized actions, over steps within their episodes, for right, shuffled and blank.

    Shuffled: each moment has the images of the one half the list away. A policy that ignores its images is as good with those.
    Every process must call it, takes its share, and gets the same figures.

    Args:
        model: a `VisionLanguageActionModel`, sharded within `Step.measured`.
        collate: collator with central crops; one with stored features has no blank images, and that figure is left out.
    """
    assert isinstance(model, VisionLanguageActionModel)
    half = (len(windows) + 1) // 2
    others = [windows[(i + half) % len(windows)] for i in range(len(windows))]
    shown = {
        "right": list(windows),
        "shuffled": [_seeing(one, other.observation.images) for one, other in zip(windows, others, strict=True)],
    }
    if collate.features is None:
        shown["blank"] = [_seeing(one, dict.fromkeys(one.observation.images, GRAY)) for one in windows]
    found = {name: _difference(accelerator, model, given, collate, batch_size) for name, given in shown.items()}
    return {f"action_error/{name}": value for name, value in found.items()}


def _seeing(window: Window, images) -> Window:
    return replace(window, observation=replace(window.observation, images=images))


def _difference(
    accelerator: Accelerator,
    model: VisionLanguageActionModel,
    windows: list[Window],
    collate: ActionCollator,
    batch_size: int,
) -> float:
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for start in range(0, len(windows), batch_size * accelerator.num_processes):
        at = start + batch_size * accelerator.process_index
        mine = windows[at : at + batch_size]
        batch = collate([(one, 0) for one in mine or windows[:1]])  # a process without a share makes the passes too
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        with eval_mode(model), accelerator.autocast():
            given = model.head.decode(model.head.prefill(model.prefix(batch)))
        if mine:
            kept = ~batch["padded"]
            error = (given - batch["actions"]).abs()[kept]
            sums += torch.stack([error.sum(), torch.tensor(error.numel(), device=error.device)]).double()
    sums = torch.as_tensor(accelerator.reduce(sums, "sum"))
    return (sums[0] / sums[1]).item()
