"""Learned latents that look at the patch tokens once."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projectors.attention import CrossAttention
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class LatentAttention(Projector):
    """Tokens of length 1, a linear map, and learned latents that attend to the result and to themselves, once (Kosmos-2.5).

    The linear map starts normal with a deviation of 1, since the squares of a token's channels sum to 1.

    Args:
        num_latents: tokens out.
        num_heads: of the attention; it divides out_dim.

    Raises:
        ValueError: a number below 1, or heads that do not divide the width.
    """

    def __init__(self, in_dim: int, out_dim: int, *, num_latents: int = 64, num_heads: int = 8):
        super().__init__(in_dim, out_dim)
        at_least_one("latent_attention", num_latents=num_latents, num_heads=num_heads)
        if out_dim % num_heads:
            raise ValueError(f"latent_attention has {num_heads} heads, which do not divide its width {out_dim}")
        self.num_latents, self.num_heads = num_latents, num_heads
        self.fc1 = nn.Linear(in_dim, out_dim)
        nn.init.normal_(self.fc1.weight)
        self.latents = nn.Parameter(0.02 * torch.randn(num_latents, out_dim))
        heads = dict(num_heads=num_heads, num_kv_heads=num_heads, head_dim=out_dim // num_heads)
        self.attn = CrossAttention(out_dim, out_dim, **heads, bias=True)

    @property
    def options(self) -> dict:
        return {"num_latents": self.num_latents, "num_heads": self.num_heads}

    def out_grid(self, grid: Grid) -> None:
        super().out_grid(grid)

    def num_tokens(self, grid: Grid) -> int:
        self.out_grid(grid)
        return self.num_latents

    def flops(self, grid: Grid) -> int:
        patches = grid[0] * grid[1]
        return weight_flops(self.fc1, patches) + self.attn.flops(self.num_latents, patches + self.num_latents)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        latents = self.latents.expand(len(tokens), -1, -1)
        return self.attn(latents, torch.cat([self.fc1(F.normalize(tokens, dim=-1)), latents], dim=1))
