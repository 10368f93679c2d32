"""Fewer tokens: the mean of neighbors attends to them, then a gated perceptron."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from projectors.attention import CrossAttention
from projectors.gated_mlp import GatedMLP
from projectors.neighbors import rounded_up_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class AttentionPool2d(Projector):
    """The mean of pool x pool neighbors attends to them; then act(gate(y)) * up(y) through a last linear map.

    Molmo2 (Clark et al. 2026, arXiv:2601.10611), whose tokens are those of two blocks side by side in the channels. A side
    that `pool` does not divide is rounded up: squares at the edges have fewer neighbors.

    Args:
        pool: side of the square.
        width: channels after the attention; 0 for in_dim.
        num_heads, num_kv_heads, head_dim: of the attention; num_kv_heads divides num_heads, 0 for as many. head_dim 0 for
            width / num_heads.
        hidden_dim: of the perceptron; 0 for 4 * out_dim.
        activation: of the perceptron, a key of `projectors.activation.ACTIVATIONS`.
        masked: whether squares at the edges are of fewer neighbors; else they are whole, with zeros (MolmoAct2).
        attention_bias, mlp_bias: whether the maps of the attention, and the first two of the perceptron, have a bias.

    Weights start normal with the deviation that keeps the scale of the tokens.

    Raises:
        ValueError: a number below 1, heads that cannot share keys evenly, or an unknown activation.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        pool: int = 2,
        width: int = 0,
        num_heads: int = 4,
        num_kv_heads: int = 0,
        head_dim: int = 0,
        hidden_dim: int = 0,
        activation: str = "silu",
        attention_bias: bool = True,
        mlp_bias: bool = False,
        masked: bool = True,
    ):
        super().__init__(in_dim, out_dim)
        width, heads = width or in_dim, num_kv_heads or num_heads
        head_dim, hidden = head_dim or width // num_heads, hidden_dim or 4 * out_dim
        sizes = dict(pool=pool, width=width, num_heads=num_heads, num_kv_heads=heads, head_dim=head_dim)
        at_least_one("attention_pool", **sizes, hidden_dim=hidden)
        if num_heads % heads:
            raise ValueError(f"attention_pool has {num_heads} heads, no multiple of its num_kv_heads {heads}")
        self._options = sizes | dict(hidden_dim=hidden, activation=activation)
        self._options |= dict(attention_bias=attention_bias, mlp_bias=mlp_bias, masked=masked)
        self.pool, self.masked = pool, masked
        counts = dict(num_heads=num_heads, num_kv_heads=heads, head_dim=head_dim)
        self.attn = CrossAttention(in_dim, in_dim, **counts, bias=attention_bias, output_width=width)
        self.mlp = GatedMLP(width, hidden, out_dim, activation, bias=mlp_bias)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=(layer.in_features**-0.5))

    @property
    def options(self) -> dict:
        return dict(self._options)

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return rounded_up_grid(grid, self.pool)

    def flops(self, grid: Grid) -> int:
        queries = self.num_tokens(grid)
        return queries * self.attn.flops(1, self.pool**2) + weight_flops(self.mlp, queries)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        squares, valid = self._squares(tokens, grid)
        whole = grid[0] % self.pool == 0 and grid[1] % self.pool == 0
        query = squares.sum(1, keepdim=True) / valid.sum(1)[:, None, None]
        y = self.attn(query, squares, seen=None if whole else valid)[:, 0]
        return self.mlp(y).unflatten(0, (len(tokens), -1))

    def _squares(self, tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """(B M, pool^2, in_dim), zeros past the edges, and which of them are patches, (B M, pool^2)."""
        size, pool = self.out_grid(grid), self.pool
        missing = [n * pool - has for n, has in zip(size, grid, strict=True)]
        edges = (0, 0, missing[1] // 2, -(-missing[1] // 2), missing[0] // 2, -(-missing[0] // 2))
        tokens = F.pad(tokens.unflatten(1, grid), edges)
        valid = F.pad(torch.ones(1, *grid, 1, dtype=torch.bool, device=tokens.device), edges)
        pattern = "b (h p) (w q) d -> (b h w) (p q) d"
        valid = rearrange(valid.expand(len(tokens), -1, -1, -1), pattern, p=pool, q=pool)[..., 0]
        return rearrange(tokens, pattern, p=pool, q=pool), valid if self.masked else torch.ones_like(valid)
