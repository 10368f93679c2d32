"""A merger in the middle of a tower: each 2 x 2 patches become one token (MiniCPM-V 4.6)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vlm_vision.nn.attention import Attention, Context
from vlm_vision.nn.blocks import norm
from vlm_vision.nn.config import ViTConfig, merged_grid
from vlm_vision.nn.linear import Linear
from vlm_vision.nn.sequence import Part


class Merge(nn.Module):
    """Attention within each 2 x 2 patches, then a perceptron on the four side by side, plus their mean."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        width = 4 * config.embed_dim
        self.norm1 = norm(config)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.fc1 = Linear(width, config.merge_dim)
        self.fc2 = Linear(config.merge_dim, config.embed_dim)

    def forward(self, x: Tensor, parts: Sequence[Part]) -> tuple[Tensor, list[Part]]:
        """(B, T, D) of a sequence of `parts` -> (B, T / 4, D) and its parts.

        Raises:
            ValueError: an odd number of rows or columns.
        """
        merged = [part._replace(grid=merged_grid(part.grid)) for part in parts]
        sizes = [part.count * part.frames * part.grid[0] * part.grid[1] for part in parts]
        out = [self._merged(piece, part.grid) for piece, part in zip(x.split(sizes, dim=1), merged, strict=True)]
        return torch.cat(out, dim=1), merged

    def _merged(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        rows, columns = grid
        squares = rearrange(x, "b (n r i c j) d -> (b n r c) (i j) d", r=rows, c=columns, i=2, j=2)
        squares = squares + self.attn(self.norm1(squares), Context())
        y = self.fc2(F.gelu(self.fc1(self.norm2(squares.flatten(1))), approximate="tanh")) + squares.mean(dim=1)
        return y.unflatten(0, (len(x), -1))
