"""Learned latents that attend to the patch tokens: a fixed number of tokens out."""

import torch
from torch import Tensor, nn

from projectors.attention import CrossAttention
from projectors.gated_mlp import GatedMLP
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class PerceiverLayer(nn.Module):
    """Latents attend to the context and to themselves, then a gated perceptron; norms before, sums after."""

    def __init__(self, width: int, *, num_heads: int, num_kv_heads: int, head_dim: int, activation: str, eps: float):
        super().__init__()
        self.latents_norm = nn.RMSNorm(width, eps=eps)
        self.context_norm = nn.RMSNorm(width, eps=eps)
        heads = dict(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
        self.attn = CrossAttention(width, width, **heads, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=eps)
        self.mlp = GatedMLP(width, 4 * width, width, activation)

    def flops(self, latents: int, context: int) -> int:
        return self.attn.flops(latents, context + latents) + weight_flops(self.mlp, latents)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        asking = self.latents_norm(latents)
        latents = latents + self.attn(asking, torch.cat([self.context_norm(context), asking], dim=1))
        return latents + self.mlp(self.mlp_norm(latents))


class Perceiver(Projector):
    """A gated perceptron to the language model's width, then a perceiver resampler: num_latents tokens for any grid.

    The resampler is Flamingo's (Alayrac et al. 2022, arXiv:2204.14198) in the form of Idefics2 (Laurençon et al. 2024,
    arXiv:2405.02246), whose numbers are the defaults. Latents know places only through the positions in the
    tower's tokens. The last norm gives tokens of root mean square 1, as in Idefics2; its latents all start at 1, ours
    differ from one another, normal with a deviation of 0.02.

    Args:
        num_latents: tokens out.
        depth: layers.
        num_heads, num_kv_heads, head_dim: of the attention; num_kv_heads divides num_heads. They fit any width.
        hidden_dim: inside the first perceptron; default 4 * out_dim.
        activation: of the perceptrons, a key of `projectors.activation.ACTIVATIONS`.
        eps: of the norms.

    Raises:
        ValueError: a number below 1, heads that cannot share keys evenly, or an unknown activation.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        num_latents: int = 64,
        depth: int = 3,
        num_heads: int = 16,
        num_kv_heads: int = 4,
        head_dim: int = 96,
        hidden_dim: int | None = None,
        activation: str = "silu",
        eps: float = 1e-6,
    ):
        super().__init__(in_dim, out_dim)
        hidden_dim = 4 * out_dim if hidden_dim is None else hidden_dim
        sizes = dict(num_latents=num_latents, depth=depth, num_heads=num_heads, num_kv_heads=num_kv_heads)
        at_least_one("perceiver", **sizes, head_dim=head_dim, hidden_dim=hidden_dim)
        if num_heads % num_kv_heads:
            raise ValueError(
                f"perceiver has num_heads {num_heads}, which is not a multiple of num_kv_heads {num_kv_heads}"
            )
        heads = dict(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
        self._options = sizes | dict(head_dim=head_dim, hidden_dim=hidden_dim, activation=activation, eps=eps)
        self.num_latents = num_latents
        self.mlp = GatedMLP(in_dim, hidden_dim, out_dim, activation)
        self.latents = nn.Parameter(0.02 * torch.randn(num_latents, out_dim))
        self.layers = nn.ModuleList(
            PerceiverLayer(out_dim, **heads, activation=activation, eps=eps) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(out_dim, eps=eps)

    @property
    def options(self) -> dict:
        return dict(self._options)

    def out_grid(self, grid: Grid) -> None:
        super().out_grid(grid)

    def num_tokens(self, grid: Grid) -> int:
        self.out_grid(grid)
        return self.num_latents

    def flops(self, grid: Grid) -> int:
        patches = grid[0] * grid[1]
        layers = sum(layer.flops(self.num_latents, patches) for layer in self.layers)  # type: ignore[operator]
        return weight_flops(self.mlp, patches) + layers

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        context = self.mlp(tokens)
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        return self.norm(latents)
