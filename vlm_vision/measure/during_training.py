"""Loss and correct answers with right, shuffled and blank images, over all processes of a run."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from itertools import starmap

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlm_vision.data.conversations.records import Conversation
from vlm_vision.measure.answers import TeacherForcedCounts, shuffled_images, teacher_forced
from vlm_vision.measure.image_use import blank_batch
from vlm_vision.tokens.training.weightless import has_weights
from vlm_vision.train.trainable import unwrapped

SHOWN = ("right", "shuffled", "blank")


def watch(
    accelerator: Accelerator,
    model: nn.Module,
    conversations: Sequence[Conversation],
    collate: Callable[[Sequence[Conversation]], dict[str, Tensor]],
    *,
    batch_size: int,
    seed: int,
) -> dict[str, TeacherForcedCounts]:
    """Measure a model while it trains; every process must call it, takes its share, and gets the sums.

    Conversations without images, and those whose number of images no other has, are left out; where none is left, so
    is the whole measurement. An encoder without weights, whose tokens are stored, sees no blank images. All processes make the same number of forward passes, as a sharded model needs.

    Args:
        model: sharded or not, wrapped by peft or not.
        collate: of the run.
        batch_size: conversations at a time in each process.
        seed: of which image takes whose place.

    Returns:
        The counts for "right", "shuffled" and, where the encoder has weights, "blank" images, or an empty dictionary.
    """
    other = shuffled_images([one.images for one in conversations], seed=seed)
    pairs = [(one, replace(one, images=p)) for one, p in zip(conversations, other, strict=True) if p is not None]
    names = SHOWN if has_weights(unwrapped(model).encoder) else SHOWN[:2]
    found = dict.fromkeys(names, TeacherForcedCounts())
    for start in range(0, len(pairs), batch_size * accelerator.num_processes):
        at = start + batch_size * accelerator.process_index
        mine = pairs[at : at + batch_size]
        own, others = zip(*(mine or pairs[:1]), strict=True)  # a process without a share makes the passes too
        batch = _to(collate(own), accelerator.device)
        shown = [batch, _to(collate(others), accelerator.device)]
        if "blank" in names:
            shown.append(blank_batch(unwrapped(model), batch))
        with accelerator.autocast():
            seen = [teacher_forced(model, one) for one in shown]
        if mine:
            found = {name: found[name] + one for name, one in zip(names, seen, strict=True)}
    sums = torch.tensor([astuple(one) for one in found.values()], dtype=torch.float64, device=accelerator.device)
    sums = torch.as_tensor(accelerator.reduce(sums, "sum")).tolist()
    whole = starmap(lambda loss, *counts: TeacherForcedCounts(loss, *map(int, counts)), sums)
    return dict(zip(names, whole, strict=True)) if pairs else {}


def figures(found: dict[str, TeacherForcedCounts]) -> dict[str, float]:
    """By name, for a tracker and for metrics.json."""
    losses = {f"eval_loss/{name}": one.loss_per_token for name, one in found.items()}
    return losses | {f"eval_accuracy/{name}": one.accuracy for name, one in found.items()}


def _to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}
