"""Fewer tokens: the mean of neighbors, a norm, then one linear map."""

import torch.nn.functional as F
from torch import Tensor, nn

from projectors.neighbors import square_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class PooledLinear(Projector):
    """The mean of factor x factor neighbors, an RMS norm, and a linear map without bias: Gemma 3 (arXiv:2503.19786).

    Args:
        factor: side of the square.
        eps: of the norm.

    Raises:
        ValueError: a factor below 1; in use, a grid that it does not divide.
    """

    def __init__(self, in_dim: int, out_dim: int, *, factor: int = 2, eps: float = 1e-6):
        super().__init__(in_dim, out_dim)
        at_least_one("pooled_linear", factor=factor)
        self.factor, self.eps = factor, eps
        self.norm = nn.RMSNorm(in_dim, eps=eps)
        self.fc1 = nn.Linear(in_dim, out_dim, bias=False)

    @property
    def options(self) -> dict:
        return {"factor": self.factor, "eps": self.eps}

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return square_grid("pooled_linear", grid, side=self.factor, option="factor")

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        self.out_grid(grid)
        pooled = F.avg_pool2d(tokens.mT.unflatten(2, grid), self.factor)
        return self.fc1(self.norm(pooled.flatten(2).mT))
