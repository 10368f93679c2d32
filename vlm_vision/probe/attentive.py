"""Attentive probe: one learned query reads the patch tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.probe.labeled import LabeledFeatures, accuracy, held_out
from vlm_vision.probe.seeded import seeded

RATES = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class AttentiveProbe:
    """Accuracies from 0 to 1 of the learning rate that was best on the held-out part."""

    accuracy: float
    """Accuracy on the test data."""
    validation: float
    """Accuracy on the held-out part."""
    rate: float


class AttentiveHead(nn.Module):
    """logits = linear(sum over patches of softmax(q K) V), of normalized tokens, in several heads.

    The cross-attention of V-JEPA's probe (Bardes et al. 2024, arXiv:2404.08471, section 3) without its MLP, as CAPI
    (Darcet et al. 2025, arXiv:2502.08769) evaluates.
    """

    def __init__(self, dim: int, classes: int, *, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(0.02 * torch.randn(dim))
        self.kv = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, classes)"""
        keys, values = self.kv(self.norm(tokens)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query.unflatten(-1, (self.num_heads, 1, -1)).expand(len(tokens), -1, -1, -1)
        return self.head(F.scaled_dot_product_attention(query, keys, values).flatten(1))


def attentive_probe(
    train: LabeledFeatures,
    test: LabeledFeatures,
    *,
    rates: Sequence[float] = RATES,
    share: float = 0.1,
    num_heads: int = 8,
    epochs: int = 20,
    batch_size: int = 256,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> AttentiveProbe:
    """Train a head with each learning rate, choose by a held-out part of the training data, and ask it about the test data.

    AdamW, a cosine to zero over `epochs`.

    Args:
        train, test: patch tokens (M, N, D) as `patch_features` makes them.
        share: of the training data, held out.
        num_heads: of the attention; D is a multiple of it.

    Raises:
        ValueError: tokens of another shape, a width that is no multiple of num_heads, or too few images to hold some out.
    """
    if train.features.ndim != 3 or train.features.shape[-1] != test.features.shape[-1]:
        raise ValueError(
            f"tokens are {tuple(train.features.shape)} and {tuple(test.features.shape)}, expected (M, N, D) of one width"
        )
    if train.features.shape[-1] % num_heads:
        raise ValueError(
            f"tokens have {train.features.shape[-1]} channels, expected a multiple of num_heads {num_heads}"
        )
    rest, part = held_out(train, share, seed=seed)
    classes = train.num_classes
    heads = []
    for rate in rates:
        with seeded(seed):
            head = AttentiveHead(train.features.shape[-1], classes, num_heads=num_heads).to(train.features.device)
            heads.append(_train_head(head, rest, rate, epochs, batch_size, weight_decay))
    scores = [_accuracy(head, part, batch_size) for head in heads]
    best = max(range(len(rates)), key=scores.__getitem__)
    return AttentiveProbe(_accuracy(heads[best], test, batch_size), scores[best], rates[best])


def _train_head(
    head: AttentiveHead, data: LabeledFeatures, rate: float, epochs: int, batch_size: int, weight_decay: float
) -> AttentiveHead:
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(data) // batch_size))
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).to(data.labels.device).split(batch_size):
            batch = data[rows]
            optimizer.zero_grad()
            F.cross_entropy(head(batch.features.float()), batch.labels).backward()
            optimizer.step()
            schedule.step()
    return head


@torch.no_grad()
def _accuracy(head: AttentiveHead, data: LabeledFeatures, batch_size: int) -> float:
    predicted = [head(tokens.float()).argmax(dim=1) for tokens in data.features.split(batch_size)]
    return accuracy(torch.cat(predicted), data.labels)
