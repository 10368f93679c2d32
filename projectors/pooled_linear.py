"""Fewer tokens: the mean of neighbors, a norm, then one linear map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projectors.neighbors import square_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class PooledLinear(Projector):
    """The mean of factor x factor neighbors, an RMS norm, and a linear map without bias: Gemma 3 (arXiv:2503.19786), Gemma 4.

    Gemma 4 multiplies the mean by the square root of in_dim; some of its models then subtract `shift` and multiply by `gain`,
    stored numbers of each channel.

    Args:
        factor: side of the square.
        eps: of the norm.
        weighted: the norm has weights, one for each channel (Gemma 3).
        standardize: the mean times the square root of in_dim, less `shift`, times `gain`, comes before the norm (Gemma 4).

    Raises:
        ValueError: a factor below 1; in use, a grid that it does not divide.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        factor: int = 2,
        eps: float = 1e-6,
        weighted: bool = True,
        standardize: bool = False,
    ):
        super().__init__(in_dim, out_dim)
        at_least_one("pooled_linear", factor=factor)
        self.factor, self.eps = factor, eps
        self.shift = nn.Parameter(torch.zeros(in_dim)) if standardize else None
        self.gain = nn.Parameter(torch.ones(in_dim)) if standardize else None
        self.norm = nn.RMSNorm(in_dim, eps=eps, elementwise_affine=weighted)
        self.fc1 = nn.Linear(in_dim, out_dim, bias=False)

    @property
    def options(self) -> dict:
        kind = {"weighted": self.norm.elementwise_affine, "standardize": self.shift is not None}
        return {"factor": self.factor, "eps": self.eps} | kind

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return square_grid("pooled_linear", grid, side=self.factor, option="factor")

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = F.avg_pool2d(tokens.mT.unflatten(2, grid), self.factor).flatten(2).mT
        if self.shift is not None and self.gain is not None:
            x = (x * self.in_dim**0.5 - self.shift) * self.gain
        return self.fc1(self.norm(x))
