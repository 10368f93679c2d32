"""The base class of projectors."""

from torch import Tensor, nn

Grid = tuple[int, int]
"""(rows, columns) of tokens, row-major."""


class Projector(nn.Module):
    """Maps (B, N, in_dim) patch tokens on a grid with N = rows * columns to (B, M, out_dim).

    Layers start as PyTorch starts them, learned tokens and positions normal with a deviation of 0.02, unless a class
    says otherwise.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        if in_dim < 1 or out_dim < 1:
            raise ValueError(f"a projector needs widths of at least 1, got in_dim={in_dim} and out_dim={out_dim}")
        self.in_dim, self.out_dim = in_dim, out_dim

    @property
    def options(self) -> dict:
        """The options, without the widths, by which `build` makes this projector again."""
        return {}

    @property
    def num_parameters(self) -> int:
        """Number of its parameters."""
        return sum(weight.numel() for weight in self.parameters())

    def out_grid(self, grid: Grid) -> Grid | None:
        """Rows and columns of the tokens out, row-major; None where they lie on no grid.

        Raises:
            ValueError: a grid that this projector cannot map.
        """
        if min(grid) < 1:
            raise ValueError(f"a grid needs at least one row and one column, got {grid[0]}x{grid[1]}")
        return grid

    def num_tokens(self, grid: Grid) -> int:
        """M, the tokens out for a grid of patches in. Raises ValueError as `out_grid`."""
        out = self.out_grid(grid)
        assert out is not None, "a projector whose tokens lie on no grid overrides num_tokens"
        return out[0] * out[1]

    def flops(self, grid: Grid) -> int:
        """Operations for one image: matrix products and convolutions, attention's included, a multiply-add as two."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Check the shape, then `project`.

        Raises:
            ValueError: tokens are not (B, rows * columns, in_dim), or the grid cannot be mapped.
        """
        self.out_grid(grid)
        if tokens.ndim != 3 or tokens.shape[1:] != (grid[0] * grid[1], self.in_dim):
            raise ValueError(
                f"expected tokens of shape (batch, {grid[0] * grid[1]}, {self.in_dim}) for a grid of {grid[0]}x{grid[1]}, "
                f"got {tuple(tokens.shape)}: pass patch tokens only, without CLS or registers"
            )
        return self.project(tokens, grid)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(B, N, in_dim) -> (B, M, out_dim)"""
        raise NotImplementedError


def weight_flops(module: nn.Module, positions: int) -> int:
    """Two operations for each weight of each matrix and kernel in `module`, at each position."""
    return 2 * positions * sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)


def at_least_one(projector: str, **options: int) -> None:
    """Raise ValueError if one of the options of a projector is below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{projector} has {name} {value}, expected a whole number of at least 1")
