"""Attention in padded windows with decomposed relative positions: SAM (Kirillov et al. 2023, arXiv:2304.02643), SAM 3.

Shapes: B batch, N patches (h * w, row-major), D width, H heads, K head width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vlm_vision.nn.attention import Attention, Context
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Grid, rotate


class PaddedWindowAttention(Attention):
    """Attention over the patches of each window, or of the whole image where `side` is 0.

    The tokens are padded with zeros to whole windows; patches attend to the padding, as the models were trained. Rotary
    coordinates count from the window's first row and column.
    """

    def __init__(self, config: ViTConfig, side: int):
        super().__init__(config)
        self.side, self.rope = side, config.rotary
        self.relative = None
        if config.relative_position:
            rows, columns = (side, side) if side else config.grid
            self.relative = nn.ParameterList(
                [nn.Parameter(torch.zeros(2 * size - 1, config.head_dim)) for size in (rows, columns)]
            )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        assert context.grid is not None
        (rows, columns), side = context.grid, self.side
        if not side:
            return self.proj(self._within(x, context.grid))
        x = F.pad(x.unflatten(1, context.grid), (0, 0, 0, -columns % side, 0, -rows % side))
        tall = x.shape[1] // side
        x = rearrange(x, "b (r i) (c j) d -> (b r c) (i j) d", i=side, j=side)
        x = self.proj(self._within(x, (side, side)))
        x = rearrange(x, "(b r c) (i j) d -> b (r i) (c j) d", i=side, r=tall, c=-(-columns // side))
        return x[:, :rows, :columns].flatten(1, 2)

    def _within(self, x: Tensor, grid: Grid) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        bias = None if self.relative is None else self._bias(q, grid)
        if self.rope is not None:
            angles = self.rope.angles(grid, q.shape[-1], device=x.device)
            q, k = rotate(q, *angles), rotate(k, *angles)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return out.transpose(1, 2).flatten(2)

    def _bias(self, q: Tensor, grid: Grid) -> Tensor:
        """(B, H, N, N): q . r_row[i - i'] + q . r_column[j - j'], from the unscaled queries. Li et al. 2021 (arXiv:2112.01526)."""
        by_row, by_column = self.relative_logits(q, grid)
        return (by_row[..., :, None] + by_column[..., None, :]).flatten(4).flatten(2, 3)

    def relative_logits(self, q: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """The two terms of the relative positions, (B, H, h, w, h) and (B, H, h, w, w), of queries (B, H, N, K)."""
        assert self.relative is not None
        rows, columns = (_of_distances(table, size) for table, size in zip(self.relative, grid, strict=True))
        q = q.unflatten(2, grid)
        return torch.einsum("bhijk,ixk->bhijx", q, rows), torch.einsum("bhijk,jyk->bhijy", q, columns)


def _of_distances(table: Tensor, size: int) -> Tensor:
    """(size, size, K): the entry of the distance between each two places, from a table of 2 size - 1 distances.

    A table for another size is resized linearly, as in the reference.
    """
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places + size - 1]
