"""Schedules: values as functions of the step alone, and their use in an optimizer.

momentum = cosine(step, start=0.992, end=1.0, steps=steps)
temperature = linear(step, start=0.04, end=0.07, steps=warmup_steps)
schedule = GroupSchedule(
    optimizer,
    lr=partial(cosine, start=1.0, end=0.001, steps=steps, warmup_steps=warmup_steps),
    weight_decay=partial(cosine, start=0.04, end=0.4, steps=steps),
)
"""

import math
from collections.abc import Callable
from typing import Any

import torch

Schedule = Callable[[int], float]
"""(number of finished steps) -> value for the next step."""


def linear(step: int, *, start: float, end: float, steps: int) -> float:
    """In a straight line from `start` to `end` at `steps`, then constant; with steps=0 constant from the first."""
    return end if step >= steps else start + (end - start) * step / steps


def cosine(
    step: int, *, start: float, end: float, steps: int, warmup_steps: int = 0, warmup_start: float = 0.0
) -> float:
    """Linear from warmup_start to `start` at warmup_steps, half a cosine to `end` at `steps`, then constant.

    Loshchilov and Hutter 2017 (arXiv:1608.03983); with the warm-up as MAE has it. DINOv2's warm-up ends a step earlier.

    Raises:
        ValueError: a warm-up longer than `steps`.
    """
    if warmup_steps > steps:
        raise ValueError(f"warmup_steps is {warmup_steps}, more than the {steps} steps in all: shorten the warm-up")
    if step < warmup_steps:
        return linear(step, start=warmup_start, end=start, steps=warmup_steps)
    if step >= steps:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps))) / 2


class GroupSchedule:
    """Sets learning rate and weight decay of an optimizer's groups; call `step` after each of the optimizer's.

    A group with a key `frozen_steps` has rate 0 for so many steps (the last layer of DINO's head).

    Args:
        optimizer: its groups hold their own rates, as `layer_groups` and `parameter_groups` give them.
        lr: factor on every group's own rate.
        weight_decay: value for every group that has weight decay; None leaves it as it is.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, lr: Schedule, weight_decay: Schedule | None = None):
        self.optimizer, self.lr, self.weight_decay, self.steps_done = optimizer, lr, weight_decay, 0
        for (
            group
        ) in optimizer.param_groups:  # kept in the optimizer's state: a schedule may be made after it is restored
            group.setdefault("initial_lr", group["lr"])
            group.setdefault("decays", group["weight_decay"] > 0)
        self._apply()

    def step(self) -> None:
        """One more step is done."""
        self.steps_done += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps_done = state["step"]
        self._apply()

    def _apply(self) -> None:
        factor = self.lr(self.steps_done)
        for group in self.optimizer.param_groups:
            frozen = self.steps_done < group.get("frozen_steps", 0)
            group["lr"] = 0.0 if frozen else factor * group["initial_lr"]
            if self.weight_decay is not None and group["decays"]:
                group["weight_decay"] = self.weight_decay(self.steps_done)
