"""Fewer, wider tokens: each square of neighbours becomes one, then one linear map."""

from einops import rearrange
from torch import Tensor, nn

from projectors.projector import Grid, Projector


class PixelShuffle(Projector):
    """scale x scale neighbours side by side in the channels, row by row, then a linear map without bias.

    Idefics3 (Laurençon et al. 2024, arXiv:2408.12637) and SmolVLM; a fourth of the tokens at scale 2.

    Raises:
        ValueError: a scale below 1; in use, a grid that it does not divide.
    """

    def __init__(self, in_dim: int, out_dim: int, *, scale: int = 2):
        super().__init__(in_dim, out_dim)
        if scale < 1:
            raise ValueError(f"pixel_shuffle has scale {scale}, expected a whole number of at least 1")
        self.scale = scale
        self.fc1 = nn.Linear(in_dim * scale * scale, out_dim, bias=False)

    @property
    def options(self) -> dict:
        return {"scale": self.scale}

    def num_tokens(self, grid: Grid) -> int:
        if grid[0] % self.scale or grid[1] % self.scale:
            raise ValueError(
                f"pixel_shuffle with scale {self.scale} needs a grid of multiples of it, got {grid[0]}x{grid[1]}: "
                "choose another picture size or scale"
            )
        return grid[0] * grid[1] // self.scale**2

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        self.num_tokens(grid)  # says what is wrong
        return self.fc1(
            rearrange(
                tokens,
                "b (h p w q) d -> b (h w) (p q d)",
                h=grid[0] // self.scale,
                p=self.scale,
                w=grid[1] // self.scale,
                q=self.scale,
            )
        )
