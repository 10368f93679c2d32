"""Fewer, wider tokens: each square of neighbors becomes one, then a perceptron."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from projectors.neighbors import side_by_side, square_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops

Norm = Literal["layer", "rms", "layer_after"]


class PatchMerger(Projector):
    """Norm, merge x merge neighbors side by side in the channels, then linear, exact GELU, linear.

    Qwen2-VL (Wang et al. 2024, arXiv:2409.12191), whose patches already lie square by square, row by row within each;
    ours lie row by row over the image and are put into that order. The tokens out lie row by row as well.

    Args:
        merge: side of the square.
        norm: of each token before merging, over in_dim; Qwen2-VL and Qwen3-VL have "layer", Qwen2.5-VL
            (arXiv:2502.13923) "rms". "layer_after" is over the merged tokens: the deep features of Qwen3-VL.
        eps: of the norm.
        middle_dim: channels before one more linear map, fc3 (HyperCLOVA X); 0 for none.

    Raises:
        ValueError: a merge below 1, an unknown norm; in use, a grid that merge does not divide.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        merge: int = 2,
        norm: Norm = "layer",
        eps: float = 1e-6,
        middle_dim: int = 0,
    ):
        super().__init__(in_dim, out_dim)
        at_least_one("patch_merger", merge=merge)
        if norm not in get_args(Norm):
            raise ValueError(f"patch_merger has norm {norm!r}, expected one of {', '.join(get_args(Norm))}")
        self.merge, self.kind, self.eps, self.middle_dim = merge, norm, eps, middle_dim
        width = in_dim * merge * merge if norm == "layer_after" else in_dim
        self.norm = nn.RMSNorm(width, eps=eps) if norm == "rms" else nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(in_dim * merge * merge, in_dim * merge * merge)
        self.fc2 = nn.Linear(in_dim * merge * merge, middle_dim or out_dim)
        self.fc3 = nn.Linear(middle_dim, out_dim) if middle_dim else nn.Identity()

    @property
    def options(self) -> dict:
        return {"merge": self.merge, "norm": self.kind, "eps": self.eps, "middle_dim": self.middle_dim}

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return square_grid("patch_merger", grid, side=self.merge, option="merge")

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = tokens if self.kind == "layer_after" else self.norm(tokens)
        x = side_by_side(x, self.out_grid(grid), self.merge)
        return self.fc3(self.fc2(F.gelu(self.fc1(self.norm(x) if self.kind == "layer_after" else x))))
