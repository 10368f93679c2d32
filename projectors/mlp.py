"""Projectors that map each patch token by itself: one token in, one token out."""

import torch.nn.functional as F
from torch import Tensor, nn

from projectors.projector import Grid, Projector


class Linear(Projector):
    """One linear map (PaliGemma; LLaVA's first version)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim)
        self.fc1 = nn.Linear(in_dim, out_dim)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.fc1(tokens)


class Mlp(Projector):
    """Linear, GELU, linear, as wide as the language model: LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim)
        self.fc1 = nn.Linear(in_dim, out_dim)
        self.fc2 = nn.Linear(out_dim, out_dim)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class FusedMLP(Projector):
    """Three layers for fused towers: in -> 4 in -> out -> out. Prismatic VLMs (Karamcheti et al. 2024, arXiv:2402.07865)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim)
        self.fc1 = nn.Linear(in_dim, 4 * in_dim)
        self.fc2 = nn.Linear(4 * in_dim, out_dim)
        self.fc3 = nn.Linear(out_dim, out_dim)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(tokens)))))
