"""Learned queries that look at the patch tokens once, as many as the image has patches for."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from projectors.activation import activation as activation_called
from projectors.attention import CrossAttention
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class QueryAttention(Projector):
    """Queries attend to the patch tokens, then a norm and a perceptron: Aria (Li et al. 2024, arXiv:2410.05993).

    Queries and tokens are normed and mapped before an attention that has linear maps too.

    Args:
        counts: pairs (most patches, queries): an image takes the queries of the first pair that its patches fit.
        num_heads: default one for every 64 channels, at least one.
        hidden_dim: of the perceptron; 0 for out_dim.
        activation: of the perceptron, a key of `projectors.activation.ACTIVATIONS`.
        num_queries: learned queries; 0 for the most of `counts`.
        exact: whether an image must have exactly so many patches as a pair says, as the model was trained.

    Weights start normal with the deviation that keeps the scale of the tokens.

    Raises:
        ValueError: a number below 1, a width that is no multiple of num_heads; in use, a grid of a size that is not in counts.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        counts: Iterable[Iterable[int]] = ((256, 64), (1225, 128), (4900, 256)),
        num_heads: int | None = None,
        hidden_dim: int = 0,
        activation: str = "gelu_tanh",
        num_queries: int = 0,
        exact: bool = False,
    ):
        super().__init__(in_dim, out_dim)
        heads, hidden = num_heads or max(1, in_dim // 64), hidden_dim or out_dim
        self.counts, self.exact = sorted([int(patches), int(queries)] for patches, queries in counts), exact
        at_least_one("query_attention", num_heads=heads, hidden_dim=hidden, queries=min(q for _, q in self.counts))
        if in_dim % heads:
            raise ValueError(f"query_attention has in_dim {in_dim}, no multiple of its num_heads {heads}")
        most = num_queries or max(queries for _, queries in self.counts)
        self._options = dict(counts=self.counts, num_heads=heads, hidden_dim=hidden, activation=activation)
        self._options |= dict(num_queries=most, exact=exact)
        self.act = activation_called(activation)
        self.queries = nn.Parameter(0.02 * torch.randn(most, in_dim))
        self.query_norm, self.context_norm = nn.LayerNorm(in_dim), nn.LayerNorm(in_dim)
        self.q_proj = nn.Linear(in_dim, in_dim, bias=False)
        self.k_proj = nn.Linear(in_dim, in_dim, bias=False)
        self.v_proj = nn.Linear(in_dim, in_dim, bias=False)
        self.attn = CrossAttention(
            in_dim, in_dim, num_heads=heads, num_kv_heads=heads, head_dim=in_dim // heads, bias=True
        )
        self.linear = nn.Linear(in_dim, in_dim)
        self.norm = nn.LayerNorm(in_dim)
        self.fc1 = nn.Linear(in_dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, out_dim, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=(layer.in_features**-0.5))

    @property
    def options(self) -> dict:
        return dict(self._options)

    def out_grid(self, grid: Grid) -> None:
        self.num_tokens(grid)

    def num_tokens(self, grid: Grid) -> int:
        super().out_grid(grid)
        patches = grid[0] * grid[1]
        for most, queries in self.counts:
            if patches == most or (patches < most and not self.exact):
                return queries
        known = ", ".join(str(most) for most, _ in self.counts)
        raise ValueError(f"query_attention has queries for {known} patches, got {patches}: choose another image size")

    def flops(self, grid: Grid) -> int:
        queries, patches = self.num_tokens(grid), grid[0] * grid[1]
        maps = sum(weight_flops(layer, queries) for layer in (self.q_proj, self.linear, self.fc1, self.fc2))
        maps += sum(weight_flops(layer, patches) for layer in (self.k_proj, self.v_proj))
        return maps + self.attn.flops(queries, patches)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        queries = self.queries[: self.num_tokens(grid)].expand(len(tokens), -1, -1)
        context = self.context_norm(tokens)
        x = self.attn(self.q_proj(self.query_norm(queries)), self.k_proj(context), self.v_proj(context))
        return self.fc2(self.act(self.fc1(self.norm(self.linear(x)))))
