"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Iterable

import torch
from torch import nn

TOKENS = frozenset("cls_token registers mask_token table probe queries latents positions".split())
"""What encoders and projectors call their learned tokens and tables of positions: added or looked at, not multiplied by."""


def parameter_groups(parts: Iterable[tuple[nn.Module, float]], *, weight_decay: float) -> list[dict]:
    """AdamW groups of what trains in each (module, learning rate).

    Vectors (biases, norms, LayerScale), learned tokens, positions and embeddings get no weight decay. A parameter of an earlier part is not
    repeated in a later one.

    Raises:
        ValueError: nothing trains.
    """
    groups, seen = [], set()
    for module, lr in parts:
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        decayed, plain = [], []
        for name, weight in module.named_parameters():
            if weight.requires_grad and id(weight) not in seen:
                seen.add(id(weight))
                learned = name.rpartition(".")[2] in TOKENS or id(weight) in embeddings
                matrix = sum(size > 1 for size in weight.shape) >= 2 and not learned
                (decayed if matrix else plain).append(weight)
        groups += [{"params": decayed, "lr": lr, "weight_decay": weight_decay}] * bool(decayed)
        groups += [{"params": plain, "lr": lr, "weight_decay": 0.0}] * bool(plain)
    if not groups:
        raise ValueError("nothing trains: unfreeze the projector, the encoder or the language model")
    return groups


def warmup_cosine(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, steps: int, end: float = 0.0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear from 0 over warmup_steps, then half a cosine to `end` at `steps`; the factor on every group's own rate."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
