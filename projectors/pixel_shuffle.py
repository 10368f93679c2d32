"""Fewer, wider tokens: each square of neighbors becomes one, then one linear map."""

from torch import Tensor, nn

from projectors.neighbors import side_by_side, square_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class PixelShuffle(Projector):
    """scale x scale neighbors side by side in the channels, row by row, then a linear map without bias.

    Idefics3 (Laurençon et al. 2024, arXiv:2408.12637) and SmolVLM; a fourth of the tokens at scale 2.

    Args:
        scale: side of the square.
        out_norm: whether an RMS norm follows (UltraVBERT).
        eps: of that norm.

    Raises:
        ValueError: a scale below 1; in use, a grid that it does not divide.
    """

    def __init__(self, in_dim: int, out_dim: int, *, scale: int = 2, out_norm: bool = False, eps: float = 1e-6):
        super().__init__(in_dim, out_dim)
        at_least_one("pixel_shuffle", scale=scale)
        self.scale, self.out_norm, self.eps = scale, out_norm, eps
        self.fc1 = nn.Linear(in_dim * scale * scale, out_dim, bias=False)
        self.norm = nn.RMSNorm(out_dim, eps=eps) if out_norm else nn.Identity()

    @property
    def options(self) -> dict:
        return {"scale": self.scale, "out_norm": self.out_norm, "eps": self.eps}

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return square_grid("pixel_shuffle", grid, side=self.scale, option="scale")

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.norm(self.fc1(side_by_side(tokens, self.out_grid(grid), self.scale)))
