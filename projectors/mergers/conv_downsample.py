"""Fewer, wider tokens: strided convolutions over the grid, then a linear map."""

from torch import Tensor, nn

from projectors.neighbors import rounded_up_grid
from projectors.projector import Grid, Projector, at_least_one


class ConvDownsample(Projector):
    """Convolutions of 3 x 3 tokens with stride 2, each doubling the channels, then a linear map for each token.

    Step 3 (StepFun 2025, arXiv:2507.19427). A side is halved and rounded up at each convolution.

    Args:
        depth: how many convolutions.
        bias: whether the linear map has one.

    Raises:
        ValueError: a depth below 1.
    """

    def __init__(self, in_dim: int, out_dim: int, *, depth: int = 2, bias: bool = False):
        super().__init__(in_dim, out_dim)
        at_least_one("conv_downsample", depth=depth)
        self.depth, self.bias = depth, bias
        self.convs = nn.ModuleList(
            nn.Conv2d(in_dim * 2**i, in_dim * 2 ** (i + 1), 3, stride=2, padding=1) for i in range(depth)
        )
        self.fc = nn.Linear(in_dim * 2**depth, out_dim, bias=bias)

    @property
    def options(self) -> dict:
        return {"depth": self.depth, "bias": self.bias}

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        for _ in range(self.depth):
            grid = rounded_up_grid(grid, 2)
        return grid

    def flops(self, grid: Grid) -> int:
        total = 0
        for conv in self.convs:
            grid = rounded_up_grid(grid, 2)
            total += 2 * grid[0] * grid[1] * sum(weight.numel() for weight in conv.parameters() if weight.ndim > 1)
        return total + 2 * grid[0] * grid[1] * self.fc.weight.numel()

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = tokens.mT.unflatten(2, grid)
        for conv in self.convs:
            x = conv(x)
        return self.fc(x.flatten(2).mT)
