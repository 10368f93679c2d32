"""Fewer tokens: one vector from the patch tokens of an image, or one token from each 2 x 2 of them.

Shapes: B batch, N patches, T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vlm_vision.nn.attention import Attention, Context
from vlm_vision.nn.blocks import Mlp, norm
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.linear import Linear
from vlm_vision.nn.rope import merged_grid
from vlm_vision.nn.sequence import Part


class AttentionPool(nn.Module):
    """Multi-head attention pooling: one learned probe reads all tokens. Zhai et al. 2022 (arXiv:2106.04560).

    x = attn(probe, tokens); x = x + mlp(norm(x)). Plain linear layers, so that adapters reach each of them.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.pool_heads or config.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = norm(config)
        self.mlp = Mlp(replace(config, mlp_dim=config.pool_mlp_dim or config.mlp_dim, inner_norm="none"))
        nn.init.xavier_uniform_(self.probe)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)"""
        x = self.proj(_read(self.q(self.probe), self.kv(tokens), self.num_heads))
        return (x + self.mlp(self.norm(x)))[:, 0]


class QueryPool(nn.Module):
    """One learned query reads all tokens, then a linear map: the head of AIMv2 (Fini et al. 2024, arXiv:2411.14402)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        self.kv = Linear(dim, 2 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.probe)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)"""
        return self.proj(_read(self.probe, self.kv(tokens), self.num_heads))[:, 0]


def _read(query: Tensor, kv: Tensor, num_heads: int) -> Tensor:
    """Attention of one query (1, 1, D) over keys and values (B, N, 2 D) -> (B, 1, D)"""
    q = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (1, H, 1, K)
    k, v = kv.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q.expand(kv.shape[0], -1, -1, -1), k, v).transpose(1, 2).flatten(2)


class Merge(nn.Module):
    """Each 2 x 2 patches become one token in the middle of a tower (MiniCPM-V 4.6): attention within them, then a perceptron
    on the four side by side, plus their mean."""

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
