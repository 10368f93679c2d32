"""Weighted nearest neighbors: separation of classes without training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_vision.probe.labeled import LabeledFeatures, accuracy

NEIGHBORS = (10, 20, 100, 200)


@dataclass(frozen=True)
class Knn:
    """Accuracies from 0 to 1."""

    by_k: dict[int, float]
    """Accuracy for each number of neighbors that is at most the number of training images."""

    @property
    def best(self) -> float:
        return max(self.by_k.values())


@torch.no_grad()
def knn(
    train: LabeledFeatures,
    test: LabeledFeatures,
    *,
    ks: Sequence[int] = NEIGHBORS,
    temperature: float = 0.07,
    chunk_size: int = 4096,
) -> Knn:
    """A test image's class is the one with most votes among its k nearest training images by cosine similarity.

    A neighbor's vote weighs exp(similarity / temperature). Wu et al. 2018, "Unsupervised feature learning via
    non-parametric instance discrimination", section 3.4, with the numbers of neighbors of DINO (Caron et al. 2021).

    Args:
        train, test: features (M, D).
        ks: numbers of neighbors.
        chunk_size: at most chunk_size**2 similarities exist at a time.

    Raises:
        ValueError: features of another shape, or no k between 1 and the number of training images.
    """
    if train.features.ndim != 2 or train.features.shape[1:] != test.features.shape[1:]:
        raise ValueError(
            f"features are {tuple(train.features.shape)} and {tuple(test.features.shape)}, expected (M, D) of one width"
        )
    ks = [k for k in sorted(set(ks)) if 1 <= k <= len(train)]
    if not ks:
        raise ValueError(
            f"no number of neighbors is at most {len(train)}, the number of training images: set a k of 1 to {len(train)}"
        )
    bank = F.normalize(train.features.float(), dim=-1)
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    for queries in F.normalize(test.features.float(), dim=-1).split(chunk_size):
        similarity, labels = _nearest(queries, bank, train.labels, ks[-1], chunk_size)
        weights = (similarity / temperature).exp()
        for k in ks:
            votes = weights.new_zeros(len(queries), train.num_classes)
            votes.scatter_add_(1, labels[:, :k], weights[:, :k])
            predicted[k].append(votes.argmax(dim=1))
    return Knn({k: accuracy(torch.cat(one), test.labels) for k, one in predicted.items()})


def _nearest(queries: Tensor, bank: Tensor, labels: Tensor, k: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Similarities and labels (Q, k) of the nearest rows of the bank, the nearest first."""
    best = queries.new_empty(len(queries), 0)
    whose = labels.new_empty(len(queries), 0)
    for rows, classes in zip(bank.split(chunk_size), labels.split(chunk_size), strict=True):
        best = torch.cat([best, queries @ rows.T], dim=1)
        whose = torch.cat([whose, classes.expand(len(queries), -1)], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        whose = whose.gather(1, order)
    return best, whose
