"""From a teacher's logits to probabilities without collapse: Sinkhorn-Knopp, or a running center."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm_vision.objectives.processes import in_float32, largest, total


@torch.no_grad()
@in_float32
def sinkhorn_knopp(
    logits: Tensor, temperature: float, *, iterations: int = 3, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Probabilities (M, K) of a teacher over prototypes that are used equally by the samples of all processes.

    Caron et al. 2020, "Unsupervised learning of visual features by contrasting cluster assignments", A.1, as DINOv2 uses
    it: exp(logits / temperature), its columns and rows made to sum to 1 in turn, rows last. Computed in logarithms, so
    that no logit overflows.

    Args:
        logits: (M, K); M may differ between processes, and be zero in some.
    """
    scores = logits / temperature
    for _ in range(iterations):
        highest = scores.new_full((scores.shape[1],), -torch.inf)
        highest = largest(torch.maximum(highest, scores.amax(dim=0)) if len(scores) else highest, group)
        mass = total((scores - highest).exp().sum(dim=0), group)
        scores = (scores - highest - mass.log()).log_softmax(dim=1)
    return scores.exp()


class Center(nn.Module):
    """Softmax of logits minus their running mean.

    Caron et al. 2021, "Emerging properties in self-supervised vision transformers", section 3.1.

    Args:
        size: number of prototypes, K.
        momentum: share of the old center in the new one.
    """

    center: Tensor

    def __init__(self, size: int, *, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(size))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Probabilities, of the shape of the logits (..., K)."""
        return ((logits.float() - self.center) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def update(self, logits: Tensor, group: dist.ProcessGroup | None = None) -> None:
        """Move the center to the mean of the logits (..., K) of all processes."""
        rows = logits.float().flatten(0, -2)
        count = total(rows.new_tensor(len(rows)), group)
        mean = total(rows.sum(dim=0), group) / count.clamp(min=1)
        if count:
            self.center.lerp_(mean, 1 - self.momentum)
