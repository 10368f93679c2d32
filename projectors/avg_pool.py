"""Fewer tokens: the mean of neighbors, then a perceptron."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from projectors.mlp import MlpProjector
from projectors.neighbors import rounded_up_grid
from projectors.projector import Grid, Projector, at_least_one

How = Literal["mean", "bilinear", "mean_mirrored"]


class AvgPool(Projector):
    """Adaptive average pooling by `factor` in rows and columns, then the two layers of `MlpProjector`.

    DeCo (Yao et al. 2024, arXiv:2405.20985). A side that the factor does not divide is rounded up, ceil(rows / factor):
    the windows of adaptive pooling then overlap by one patch in places, and no patch is left out.

    Args:
        factor: rows, and columns, that become one.
        how: "mean"; "bilinear": between the two in the middle, as VideoLLaMA 3 (Zhang et al. 2025, arXiv:2501.13106); or
            "mean_mirrored": the mean, where a side that the factor does not divide is mirrored at the last patch, as Phi-4
            multimodal (arXiv:2503.01743).

    Raises:
        ValueError: a factor below 1, an unknown `how`.
    """

    def __init__(self, in_dim: int, out_dim: int, *, factor: int = 2, how: How = "mean"):
        super().__init__(in_dim, out_dim)
        at_least_one("avg_pool", factor=factor)
        if how not in get_args(How):
            raise ValueError(f"avg_pool has how {how!r}, expected one of {', '.join(get_args(How))}")
        self.factor, self.how = factor, how
        self.mlp = MlpProjector(in_dim, out_dim)

    @property
    def options(self) -> dict:
        return {"factor": self.factor, "how": self.how}

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return rounded_up_grid(grid, self.factor)

    def flops(self, grid: Grid) -> int:
        return self.mlp.flops(self.out_grid(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        image, size = tokens.mT.unflatten(2, grid), self.out_grid(grid)
        if self.how == "mean_mirrored":
            missing = [n * self.factor - has for n, has in zip(size, grid, strict=True)]
            pooled = F.avg_pool2d(F.pad(image, (0, missing[1], 0, missing[0]), mode="reflect"), self.factor)
        elif self.how == "mean":
            pooled = F.adaptive_avg_pool2d(image, size)
        else:
            pooled = F.interpolate(image, size, mode="bilinear")
        return self.mlp(pooled.flatten(2).mT, size)
