"""A feature map of few channels, made smaller by convolutions: SAM's neck and what readers of documents put behind it."""

from collections.abc import Sequence

from torch import Tensor, nn

from projectors.neighbors import rounded_up_grid
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class ConvNeck(Projector):
    """Convolution of one pixel, layer norm, convolution of 3 x 3, layer norm; then convolutions of stride 2 and linear maps.

    SAM (Kirillov et al. 2023, arXiv:2304.02643) ends after the second norm; GOT-OCR 2.0 (Wei et al. 2024,
    arXiv:2409.01704) and PP-FormulaNet have two convolutions of stride 2 and one or two linear maps behind it. There are no
    activations, and only the linear maps have biases.

    Args:
        width: channels of the first two convolutions.
        down: channels of each convolution of 3 x 3 with stride 2, which halves rows and columns, rounded up.
        linear: linear maps at the end, of which the last has out_dim channels.
        eps: of the norms.

    Raises:
        ValueError: a number below 1; without linear maps, a last convolution with other channels than out_dim.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        width: int = 256,
        down: Sequence[int] = (512,),
        linear: int = 1,
        eps: float = 1e-6,
    ):
        super().__init__(in_dim, out_dim)
        at_least_one("conv_neck", width=width, **{f"down[{i}]": each for i, each in enumerate(down)})
        if linear < 0 or (not linear and (list(down) or [width])[-1] != out_dim):
            raise ValueError(
                f"conv_neck has linear {linear} and ends with {(list(down) or [width])[-1]} channels, expected {out_dim} "
                "channels, or a linear map to them"
            )
        self.width, self.widths, self.linear, self.eps = width, list(down), linear, eps
        self.conv1 = nn.Conv2d(in_dim, width, 1, bias=False)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        channels = [width, *down]
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            for before, after in zip(channels, channels[1:], strict=False)
        )
        last = channels[-1]
        self.fc = nn.ModuleList(nn.Linear(last, out_dim if i == linear - 1 else last) for i in range(linear))

    @property
    def options(self) -> dict:
        return {"width": self.width, "down": self.widths, "linear": self.linear, "eps": self.eps}

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return self._grids(grid)[-1]

    def _grids(self, grid: Grid) -> list[Grid]:
        """The grid after the neck, and after each convolution of stride 2."""
        grids = [grid]
        for _ in self.widths:
            grids.append(rounded_up_grid(grids[-1], 2))
        return grids

    def flops(self, grid: Grid) -> int:
        sizes = [rows * columns for rows, columns in self._grids(grid)]
        total = (
            weight_flops(self.conv1, sizes[0]) + weight_flops(self.conv2, sizes[0]) + weight_flops(self.fc, sizes[-1])
        )
        return total + sum(weight_flops(conv, size) for conv, size in zip(self.down, sizes[1:], strict=True))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = self.conv1(tokens.mT.unflatten(2, grid))
        x = self.conv2(self.norm1(x.movedim(1, -1)).movedim(-1, 1))
        x = self.norm2(x.movedim(1, -1)).movedim(-1, 1)
        for conv in self.down:
            x = conv(x)
        x = x.flatten(2).mT
        for layer in self.fc:
            x = layer(x)
        return x
