"""Fewer, wider tokens: squares of neighbors become one before, or between, the layers of a perceptron."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from projectors.activation import activation as activation_called
from projectors.neighbors import side_by_side, square_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops

Norm = Literal["none", "layer", "rms"]


class MergeMLP(Projector):
    """merge x merge neighbors side by side in the channels, row by row, and linear layers fc1, fc2, ...

    InternVL (Chen et al. 2024, arXiv:2312.14238), Llama 4, Mistral Small 3.1, Kimi K2.5 (arXiv:2602.02276), MiniMax M3 and
    others differ in where the norms are, in widths, and in the activations.

    Args:
        merge: side of the square.
        merge_at: layer, from 0, before which neighbors are merged.
        widths: channels after each layer but the last.
        activations: after each layer, a key of `projectors.activation.ACTIVATIONS`, or "none".
        biases: whether each layer has one.
        norm: of each token, before all layers.
        merged_norm: of the merged tokens.
        eps: of these norms, in turn.
        out_eps: epsilon of an RMS norm without weights of the tokens out; 0 for none.
        floor: leave out the rows and columns past the last whole square, instead of an error.

    Raises:
        ValueError: options that do not fit each other; in use, a grid that merge does not divide, unless floor is set.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        merge: int = 2,
        merge_at: int = 0,
        widths: Sequence[int] = (),
        activations: Sequence[str] = ("none",),
        biases: Sequence[bool] = (True,),
        norm: Norm = "none",
        merged_norm: Norm = "none",
        eps: Sequence[float] = (1e-5, 1e-5),
        out_eps: float = 0.0,
        floor: bool = False,
    ):
        super().__init__(in_dim, out_dim)
        at_least_one("merge_mlp", merge=merge)
        depth = len(widths) + 1
        if not len(activations) == len(biases) == depth or not 0 <= merge_at < depth or len(eps) != 2:
            raise ValueError(
                f"merge_mlp has {depth} layers, merge_at {merge_at}, {len(activations)} activations, {len(biases)} biases "
                f"and {len(eps)} values of eps: expected one activation and one bias for each layer, two values of eps"
            )
        for name, kind in (("norm", norm), ("merged_norm", merged_norm)):
            if kind not in get_args(Norm):
                raise ValueError(f"merge_mlp has {name} {kind!r}, expected one of {', '.join(get_args(Norm))}")
        self.merge, self.merge_at, self.widths, self.floor = merge, merge_at, tuple(widths), floor
        self.activations, self.biases = tuple(activations), tuple(biases)
        self.kinds, self.eps, self.out_eps = (norm, merged_norm), tuple(eps), out_eps
        self.acts = [_same if name == "none" else activation_called(name) for name in activations]
        wide = [in_dim, *widths, out_dim]
        into = [width * (merge**2 if i == merge_at else 1) for i, width in enumerate(wide[:-1])]
        self.norm = _norm(norm, in_dim, eps[0])
        self.merged_norm = _norm(merged_norm, into[merge_at], eps[1])
        self.layers = nn.ModuleList(
            nn.Linear(i, o, bias=bias) for i, o, bias in zip(into, wide[1:], biases, strict=True)
        )

    @property
    def options(self) -> dict:
        names = ("merge", "merge_at", "widths", "activations", "biases", "eps", "out_eps", "floor")
        norms = dict(zip(("norm", "merged_norm"), self.kinds, strict=True))
        return {name: getattr(self, name) for name in names} | norms

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        if self.floor and min(grid) >= self.merge:
            grid = (grid[0] // self.merge * self.merge, grid[1] // self.merge * self.merge)
        return square_grid("merge_mlp", grid, side=self.merge, option="merge")

    def flops(self, grid: Grid) -> int:
        tokens, merged = grid[0] * grid[1], self.num_tokens(grid)
        return sum(
            weight_flops(linear, merged if i >= self.merge_at else tokens) for i, linear in enumerate(self.layers)
        )

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x, out = self.norm(tokens), self.out_grid(grid)
        for i, (linear, act) in enumerate(zip(self.layers, self.acts, strict=True)):
            if i == self.merge_at:
                if self.floor:
                    x = x.unflatten(1, grid)[:, : out[0] * self.merge, : out[1] * self.merge].flatten(1, 2)
                x = self.merged_norm(side_by_side(x, out, self.merge))
            x = act(linear(x))
        return F.rms_norm(x, x.shape[-1:], eps=self.out_eps) if self.out_eps else x


def _same(x: Tensor) -> Tensor:
    return x


def _norm(kind: Norm, dim: int, eps: float) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return nn.LayerNorm(dim, eps=eps) if kind == "layer" else nn.RMSNorm(dim, eps=eps)
