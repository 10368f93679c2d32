"""Learned queries that attend to the patch tokens in some of the layers: a fixed number of tokens out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projectors.attention import CrossAttention
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class QFormerLayer(nn.Module):
    """A layer of BERT, each part followed by its sum and norm: queries among themselves, queries to patches, perceptron.

    Args:
        context_width: channels of the patch tokens, or None for a layer that does not attend to them.
    """

    def __init__(self, width: int, context_width: int | None, *, num_heads: int, hidden_dim: int, eps: float):
        super().__init__()
        heads = dict(num_heads=num_heads, num_kv_heads=num_heads, head_dim=width // num_heads)
        self.attn = CrossAttention(width, width, **heads, bias=True)
        self.attn_norm = nn.LayerNorm(width, eps=eps)
        self.looks = context_width is not None
        if context_width is not None:
            self.cross = CrossAttention(width, context_width, **heads, bias=True)
            self.cross_norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)

    def flops(self, queries: int, context: int) -> int:
        mlp = weight_flops(self.fc1, queries) + weight_flops(self.fc2, queries)
        return self.attn.flops(queries, queries) + mlp + (self.cross.flops(queries, context) if self.looks else 0)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attn_norm(x + self.attn(x, x))
        if self.looks:
            x = self.cross_norm(x + self.cross(x, context))
        return self.mlp_norm(x + self.fc2(F.gelu(self.fc1(x))))


class QFormer(Projector):
    """The Q-Former of BLIP-2 (Li et al. 2023, arXiv:2301.12597), queries alone, then a linear map: num_queries tokens.

    The shape of BERT-base with 32 queries by default. Queries know places only through the positions in the
    tower's tokens. Its layers start as BERT's do, normal with a deviation of 0.02 and no bias, and so do the queries (in
    transformers they are all zero); the linear map after the last norm starts as PyTorch starts it. There is no dropout,
    and BLIP-2's queries also see the class token of its tower, which is no patch.

    Args:
        num_queries: tokens out.
        width: channels inside.
        depth: layers.
        num_heads: default one for every 64 channels, at least one.
        hidden_dim: of the perceptrons; default 4 * width.
        cross_attention_frequency: layers 0, f, 2 f, ... attend to the patch tokens.
        eps: of the norms.

    Raises:
        ValueError: a number below 1, or a width that is no multiple of num_heads.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        num_queries: int = 32,
        width: int = 768,
        depth: int = 12,
        num_heads: int | None = None,
        hidden_dim: int | None = None,
        cross_attention_frequency: int = 2,
        eps: float = 1e-12,
    ):
        super().__init__(in_dim, out_dim)
        num_heads = max(1, width // 64) if num_heads is None else num_heads
        hidden_dim = 4 * width if hidden_dim is None else hidden_dim
        sizes = dict(num_queries=num_queries, width=width, depth=depth, num_heads=num_heads, hidden_dim=hidden_dim)
        sizes |= dict(cross_attention_frequency=cross_attention_frequency)
        at_least_one("qformer", **sizes)
        if width % num_heads:
            raise ValueError(
                f"qformer has width {width}, which is not a multiple of num_heads {num_heads}: choose num_heads"
            )
        self._options = sizes | dict(eps=eps)
        self.num_queries = num_queries
        self.queries = nn.Parameter(0.02 * torch.randn(1, num_queries, width))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(
            QFormerLayer(
                width,
                in_dim if i % cross_attention_frequency == 0 else None,
                num_heads=num_heads,
                hidden_dim=hidden_dim,
                eps=eps,
            )
            for i in range(depth)
        )
        for layer in self.layers.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.fc1 = nn.Linear(width, out_dim)

    @property
    def options(self) -> dict:
        return dict(self._options)

    def out_grid(self, grid: Grid) -> None:
        super().out_grid(grid)

    def num_tokens(self, grid: Grid) -> int:
        self.out_grid(grid)
        return self.num_queries

    def flops(self, grid: Grid) -> int:
        layers = sum(layer.flops(self.num_queries, grid[0] * grid[1]) for layer in self.layers)  # type: ignore[operator]
        return layers + weight_flops(self.fc1, self.num_queries)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = self.norm(self.queries).expand(len(tokens), -1, -1)
        for layer in self.layers:
            x = layer(x, tokens)
        return self.fc1(x)
