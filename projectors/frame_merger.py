"""Fewer, wider tokens: each square of neighbors becomes one, then each two frames become one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projectors.neighbors import side_by_side, square_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class FrameMerger(Projector):
    """Neighbors side by side through a perceptron with a norm, two frames side by side through another, then a linear map
    and an RMS norm. An image stands for two equal frames.

    ERNIE 4.5 VL (Baidu 2025, ERNIE 4.5 Technical Report). The tokens out lie row by row.

    Args:
        merge: side of the square of neighbors.
        eps: of the norms after the perceptrons.
        out_eps: of the last norm.

    Raises:
        ValueError: a merge below 1; in use, a grid that merge does not divide.
    """

    def __init__(self, in_dim: int, out_dim: int, *, merge: int = 2, eps: float = 1e-6, out_eps: float = 1e-5):
        super().__init__(in_dim, out_dim)
        at_least_one("frame_merger", merge=merge)
        self.merge, self.eps, self.out_eps = merge, eps, out_eps
        width = in_dim * merge * merge
        self.spatial_fc1 = nn.Linear(width, width)
        self.spatial_fc2 = nn.Linear(width, width)
        self.spatial_norm = nn.LayerNorm(width, eps=eps)
        self.temporal_fc1 = nn.Linear(2 * width, width)
        self.temporal_fc2 = nn.Linear(width, width)
        self.temporal_norm = nn.LayerNorm(width, eps=eps)
        self.fc = nn.Linear(width, out_dim)
        self.norm = nn.RMSNorm(out_dim, eps=out_eps)

    @property
    def options(self) -> dict:
        return {"merge": self.merge, "eps": self.eps, "out_eps": self.out_eps}

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return square_grid("frame_merger", grid, side=self.merge, option="merge")

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = side_by_side(tokens, self.out_grid(grid), self.merge)
        x = self.spatial_norm(self.spatial_fc2(F.gelu(self.spatial_fc1(x))))
        x = self.temporal_fc1(torch.cat([x, x], dim=-1))
        x = self.temporal_norm(self.temporal_fc2(F.gelu(x)))
        return self.norm(self.fc(x))
