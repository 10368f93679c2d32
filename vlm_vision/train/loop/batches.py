"""The micro-batches of each step, read by worker processes if the settings ask for them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from vlm_vision.train.settings import Training


def batches_of_steps(
    settings: Training,
    accelerator: Accelerator,
    data: Dataset[Any],
    order: Iterable[Any],
    collate: Callable[[Any], Any],
    *,
    steps: range,
    micro_batches: int,
) -> Iterator[list[Any]]:
    """This process's micro-batches of each step.

    Args:
        data: index -> sample.
        order: the indices of each micro-batch.
        collate: samples -> micro-batch.
        steps: the steps that are still to take.
        micro_batches: in each step.
    """
    loader = DataLoader(
        data,
        batch_sampler=order,  # type: ignore[arg-type]  # any iterable will do
        collate_fn=collate,
        num_workers=settings.workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # its own: the global one was just restored, and must not be drawn from
    )
    return _grouped(loader, steps, micro_batches)


def _grouped(loader: Iterable[Any], steps: range, micro_batches: int) -> Iterator[list[Any]]:
    batches = iter(loader)
    for _ in steps:
        yield [next(batches) for _ in range(micro_batches)]
