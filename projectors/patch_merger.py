"""Fewer, wider tokens: each square of neighbors becomes one, then a perceptron."""

from typing import Literal, get_args

from torch import Tensor, nn

from projectors.activation import activation as activation_called
from projectors.neighbors import side_by_side, square_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops

Norm = Literal["none", "layer", "rms", "layer_after"]


class PatchMerger(Projector):
    """Norm, merge x merge neighbors side by side in the channels, then linear, activation, linear.

    Qwen2-VL (Wang et al. 2024, arXiv:2409.12191), whose patches already lie square by square, row by row within each;
    ours lie row by row over the image and are put into that order. The tokens out lie row by row as well. A convolution
    whose stride is its size is such a linear map (HunYuan-VL).

    Args:
        merge: side of the square.
        norm: of each token before merging, over in_dim; Qwen2-VL and Qwen3-VL have "layer", Qwen2.5-VL
            (arXiv:2502.13923) "rms". "layer_after" is over the merged tokens: the deep features of Qwen3-VL, Aya Vision
            (arXiv:2505.08751).
        eps: of the norms.
        hidden_dim: channels between the linear maps; 0 for those of the merged tokens.
        activation: a key of `projectors.activation.ACTIVATIONS`.
        gated: whether the first map gives a value and a gate, whose activation is multiplied with it (Aya Vision).
        bias: whether the linear maps have one.
        middle_dim: channels before one more linear map, fc3 (HyperCLOVA X); 0 for none.
        out_norm: whether an RMS norm comes last (HunYuan-VL).

    Raises:
        ValueError: a merge below 1, an unknown norm or activation; in use, a grid that merge does not divide.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        merge: int = 2,
        norm: Norm = "layer",
        eps: float = 1e-6,
        hidden_dim: int = 0,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        middle_dim: int = 0,
        out_norm: bool = False,
    ):
        super().__init__(in_dim, out_dim)
        at_least_one("patch_merger", merge=merge)
        if norm not in get_args(Norm):
            raise ValueError(f"patch_merger has norm {norm!r}, expected one of {', '.join(get_args(Norm))}")
        width = in_dim * merge * merge
        hidden = hidden_dim or width
        self.merge, self.kind, self.gated = merge, norm, gated
        self._options = dict(merge=merge, norm=norm, eps=eps, hidden_dim=hidden_dim, activation=activation, gated=gated)
        self._options |= dict(bias=bias, middle_dim=middle_dim, out_norm=out_norm)
        self.act = activation_called(activation)
        if norm == "none":
            self.norm = nn.Identity()
        elif norm == "rms":
            self.norm = nn.RMSNorm(in_dim, eps=eps)
        else:
            self.norm = nn.LayerNorm(width if norm == "layer_after" else in_dim, eps=eps)
        self.fc1 = nn.Linear(width, 2 * hidden if gated else hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, middle_dim or out_dim, bias=bias)
        self.fc3 = nn.Linear(middle_dim, out_dim) if middle_dim else nn.Identity()
        self.out_norm = nn.RMSNorm(out_dim, eps=eps) if out_norm else nn.Identity()

    @property
    def options(self) -> dict:
        return dict(self._options)

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return square_grid("patch_merger", grid, side=self.merge, option="merge")

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = tokens if self.kind == "layer_after" else self.norm(tokens)
        x = side_by_side(x, self.out_grid(grid), self.merge)
        x = self.fc1(self.norm(x) if self.kind == "layer_after" else x)
        if self.gated:
            value, gate = x.chunk(2, dim=-1)
            x = value * self.act(gate)
        else:
            x = self.act(x)
        return self.out_norm(self.fc3(self.fc2(x)))
