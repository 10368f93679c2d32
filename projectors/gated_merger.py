"""Fewer, wider tokens: each square of neighbors becomes one, then a gated perceptron."""

import torch.nn.functional as F
from torch import Tensor, nn

from projectors.gated_mlp import GatedMLP
from projectors.neighbors import side_by_side, square_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class GatedMerger(Projector):
    """A strided convolution over squares of merge x merge tokens, then y = gelu(norm(linear(x))) and a gated perceptron of
    y: act(gate(y)) * up(y) through a last linear map.

    GLM-4.1V (Hong et al. 2025, arXiv:2507.01006) and its successors. The tokens out lie row by row.

    Args:
        merge: side of the square.
        hidden_dim: channels of the gated product; 0 for three times out_dim.
        activation: of the gate, a key of `projectors.activation.ACTIVATIONS`.
        limit: most that the gate, and the other factor in size, may be before the activation; None for no limit.

    Raises:
        ValueError: a merge below 1, an unknown activation, a limit that is not positive; in use, a grid that merge does not divide.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        merge: int = 2,
        hidden_dim: int = 0,
        activation: str = "silu",
        limit: float | None = None,
    ):
        super().__init__(in_dim, out_dim)
        at_least_one("gated_merger", merge=merge)
        if limit is not None and limit <= 0:
            raise ValueError(f"gated_merger has limit {limit}, expected a positive number, or None")
        self.merge, self.hidden_dim = merge, hidden_dim or 3 * out_dim
        self.activation, self.limit = activation, limit
        self.down = nn.Linear(in_dim * merge * merge, out_dim)
        self.fc1 = nn.Linear(out_dim, out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)
        self.mlp = GatedMLP(out_dim, self.hidden_dim, out_dim, activation, limit=limit)

    @property
    def options(self) -> dict:
        return {
            "merge": self.merge,
            "hidden_dim": self.hidden_dim,
            "activation": self.activation,
            "limit": self.limit,
        }

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return square_grid("gated_merger", grid, side=self.merge, option="merge")

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = self.down(side_by_side(tokens, self.out_grid(grid), self.merge))
        return self.mlp(F.gelu(self.norm(self.fc1(x))))
