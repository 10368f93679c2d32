"""DINO: cross entropy between the student's and the teacher's logits of different crops; and the head of the logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vlm_vision.objectives.processes import in_float32


@in_float32
def dino_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.1, same_crops: bool = False) -> Tensor:
    """Mean over pairs of crops and over images of the cross entropy -sum_k t_k log softmax(s / temperature)_k.

    Caron et al. 2021, "Emerging properties in self-supervised vision transformers", equation 3, as DINOv3 takes it.
    DINOv2 sums over pairs: multiply by their number.

    Args:
        student: logits (S, B, K) of S crops.
        teacher: probabilities (T, B, K) of T crops, of `sinkhorn_knopp` or `Center`.
        same_crops: student crop i is teacher crop i, and such pairs are left out.
    """
    scores = (student / temperature).log_softmax(dim=-1)
    found, pairs = (scores.sum(dim=0) * teacher.sum(dim=0)).sum(), len(student) * len(teacher)
    if same_crops:
        shared = min(len(student), len(teacher))
        found, pairs = found - (scores[:shared] * teacher[:shared]).sum(), pairs - shared
    return -found / (pairs * student.shape[1])


class DinoHead(nn.Module):
    """MLP, L2 norm, weight-normed linear layer: (..., D) -> logits (..., K) over prototypes.

    Of DINO and DINOv2 (facebookresearch/dinov2, layers/dino_head.py), whose state dicts it loads.

    Args:
        in_dim: D.
        prototypes: K.
        depth: linear layers of the MLP.
        hidden_dim: of the MLP.
        bottleneck_dim: channels before the last layer, which are L2-normalized.
    """

    def __init__(
        self, in_dim: int, prototypes: int, *, depth: int = 3, hidden_dim: int = 2048, bottleneck_dim: int = 256
    ):
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (depth - 1), bottleneck_dim]
        layers = [
            part
            for before, after in zip(widths, widths[1:], strict=False)
            for part in (nn.Linear(before, after), nn.GELU())
        ][:-1]
        self.mlp = nn.Sequential(*layers) if depth > 1 else layers[0]
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck_dim, prototypes, bias=False))
        nn.init.ones_(self.last_layer.parametrizations.weight.original0)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        return self.last_layer(F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12))
