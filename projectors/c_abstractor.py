"""Fewer tokens: convolutions, average pooling, convolutions, then a perceptron."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projectors.mlp import MlpProjector
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class RegNetBlock(nn.Module):
    """A bottleneck of RegNet-Y, on (B, rows, columns, channels), with a layer norm after each convolution.

    1x1, 3x3 over each channel by itself, squeeze-and-excitation to a fourth of the channels in, 1x1; SiLU (Radosavovic
    et al. 2020, arXiv:2003.13678). The shortcut is a 1x1 convolution with its norm where the width changes.
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        squeezed = max(1, round(in_dim / 4))
        self.conv1, self.norm1 = nn.Linear(in_dim, dim, bias=False), nn.LayerNorm(dim)
        self.conv2, self.norm2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False), nn.LayerNorm(dim)
        self.squeeze, self.excite = nn.Linear(dim, squeezed), nn.Linear(squeezed, dim)
        self.conv3, self.norm3 = nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim)
        same = in_dim == dim
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Linear(in_dim, dim, bias=False), nn.LayerNorm(dim))

    def flops(self, positions: int) -> int:
        everywhere = (self.conv1, self.conv2, self.conv3, self.shortcut)
        once = (self.squeeze, self.excite)
        return sum(weight_flops(part, positions) for part in everywhere) + sum(weight_flops(part, 1) for part in once)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.conv1(x)))
        y = F.silu(self.norm2(self.conv2(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        y = y * self.excite(F.silu(self.squeeze(y.mean(dim=(1, 2), keepdim=True)))).sigmoid()
        return F.silu(self.norm3(self.conv3(y)) + self.shortcut(x))


class CAbstractor(Projector):
    """Honeybee's C-Abstractor (Cha et al. 2024, arXiv:2312.06742): about num_queries tokens, each from its own place.

    Learned positions are added to the tokens; `depth` RegNet blocks, adaptive average pooling, `depth` blocks, then an
    MLP with SiLU. The table of positions has Honeybee's form at its own grid and is resized elsewhere (bicubic, with
    antialiasing). Honeybee pools to a square; here rows are the nearest to sqrt(num_queries * rows / columns) of the
    patches, columns num_queries // rows, and neither above that of the patches: 12x12 of 24x24 patches, 8x18 of 16x36.

    Args:
        num_queries: tokens out, at most.
        hidden_dim: channels of the convolutions.
        depth: blocks before, and again after, the pooling.
        mlp_depth: linear layers after them.
        positions: rows and columns of the table, best those of the tower's images (24 for 336 pixels by patches of 14).

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        num_queries: int = 144,
        hidden_dim: int = 1024,
        depth: int = 3,
        mlp_depth: int = 2,
        positions: int = 24,
    ):
        super().__init__(in_dim, out_dim)
        self._options = dict(num_queries=num_queries, hidden_dim=hidden_dim, depth=depth)
        self._options |= dict(mlp_depth=mlp_depth, positions=positions)
        at_least_one("c_abstractor", **self._options)
        self.num_queries = num_queries
        self.positions = nn.Parameter(0.02 * torch.randn(positions, positions, in_dim))
        self.before = nn.Sequential(*(RegNetBlock(hidden_dim if i else in_dim, hidden_dim) for i in range(depth)))
        self.after = nn.Sequential(*(RegNetBlock(hidden_dim, hidden_dim) for _ in range(depth)))
        self.mlp = MlpProjector(hidden_dim, out_dim, depth=mlp_depth, activation="silu")

    @property
    def options(self) -> dict:
        return dict(self._options)

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        rows = round(math.sqrt(self.num_queries * grid[0] / grid[1]))
        rows = min(max(1, rows), self.num_queries, grid[0])
        return rows, min(self.num_queries // rows, grid[1])

    def flops(self, grid: Grid) -> int:
        before = sum(block.flops(grid[0] * grid[1]) for block in self.before)  # type: ignore[operator]
        after = sum(block.flops(self.num_tokens(grid)) for block in self.after)  # type: ignore[operator]
        return before + after + self.mlp.flops(self.out_grid(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = self.before(tokens.unflatten(1, grid) + self.table(grid))
        x = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.out_grid(grid)).permute(0, 2, 3, 1)
        return self.mlp(self.after(x).flatten(1, 2), self.out_grid(grid))

    def table(self, grid: Grid) -> Tensor:
        """The positions of a grid, (1, rows, columns, in_dim)."""
        table = self.positions[None]
        if grid == table.shape[1:3]:
            return table
        resized = F.interpolate(table.float().permute(0, 3, 1, 2), grid, mode="bicubic", antialias=True)
        return resized.permute(0, 2, 3, 1).to(table.dtype)
