"""What every projector is."""

from torch import Tensor, nn

Grid = tuple[int, int]
"""(rows, columns) of patch tokens, row-major."""


class Projector(nn.Module):
    """Maps (B, N, in_dim) patch tokens on a grid with N = rows * columns to (B, M, out_dim)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        if in_dim < 1 or out_dim < 1:
            raise ValueError(f"a projector needs widths of at least 1, got in_dim={in_dim} and out_dim={out_dim}")
        self.in_dim, self.out_dim = in_dim, out_dim

    @property
    def options(self) -> dict:
        """What `build` needs beside the widths to make such a projector again."""
        return {}

    def num_tokens(self, grid: Grid) -> int:
        """M, the tokens out for a grid of patches in."""
        return grid[0] * grid[1]

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Check the shape, then `project`. Raises ValueError if tokens are not (B, rows * columns, in_dim)."""
        if tokens.ndim != 3 or tokens.shape[1:] != (grid[0] * grid[1], self.in_dim):
            raise ValueError(
                f"expected tokens of shape (batch, {grid[0] * grid[1]}, {self.in_dim}) for a grid of {grid[0]}x{grid[1]}, "
                f"got {tuple(tokens.shape)}: pass patch tokens only, without CLS or registers"
            )
        return self.project(tokens, grid)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(B, N, in_dim) -> (B, M, out_dim)"""
        raise NotImplementedError
