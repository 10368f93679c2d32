"""KoLeo: spread of a batch's features over the sphere."""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vlm_vision.objectives.processes import in_float32, process_index, rows_of_all

EPS = 1e-8
"""Added to differences, distances and norms, as in the reference."""


@in_float32
def koleo_loss(
    features: Tensor,
    *,
    nearest: int = 1,
    among: Literal["all", "own"] = "all",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Mean over rows, and their `nearest` neighbors, of -log of the distance between them on the unit sphere.

    Kozachenko-Leonenko estimate of the entropy; Sablayrolles et al. 2019, "Spreading vectors for similarity search",
    equation 2, as DINOv2 (own rows) and DINOv3 (all rows) take it. Zero for one row, which has no neighbor.

    Args:
        features: (B, D), of any length; B the same in every process.
        nearest: neighbors of a row; fewer where there are fewer.
        among: search for neighbors in all processes, or in this one.
    """
    rows = F.normalize(features, dim=-1, eps=EPS)
    others, first = (rows_of_all(rows, group), process_index(group) * len(rows)) if among == "all" else (rows, 0)
    nearest = min(nearest, len(others) - 1)
    if nearest == 0:
        return (rows * 0).sum()
    with torch.no_grad():
        cosines = rows @ others.T
        cosines.diagonal(first).fill_(-torch.inf)
        found = cosines.topk(nearest, dim=1).indices
    distances = F.pairwise_distance(rows[:, None], others[found], eps=EPS)
    return -(distances + EPS).log().mean()
