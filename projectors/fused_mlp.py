"""A perceptron for the concatenated tokens of several towers."""

import torch.nn.functional as F
from torch import Tensor, nn

from projectors.projector import Grid, Projector, weight_flops


class FusedMLP(Projector):
    """Three layers for fused towers: in -> 4 in -> out -> out, with exact GELU.

    Prismatic VLMs (Karamcheti et al. 2024, arXiv:2402.07865) and OpenVLA.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim)
        self.fc1 = nn.Linear(in_dim, 4 * in_dim)
        self.fc2 = nn.Linear(4 * in_dim, out_dim)
        self.fc3 = nn.Linear(out_dim, out_dim)

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(tokens)))))
