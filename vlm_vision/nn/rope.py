"""Axial rotary positions as data: which angle each pair of channels turns by at each patch, and the rotation itself.

One layout serves every family: planes in order of axes, rows before columns, and plane j of a head of K channels is the
channels j and j + K / 2. Checkpoints that store other layouts (neighboring channels as pairs, columns before rows, each
axis on its own) have their query and key channels put into this order when they load, which changes no product.

Shapes: N patches (frames * h * w, row-major), P prefix tokens, H heads, K head width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_vision.nn.checks import check_choice, check_whole

Grid = tuple[int, int]
"""(rows, columns) of patches."""


def merged_grid(grid: Grid, side: int = 2) -> Grid:
    """The grid of tokens made of side x side patches each. Raises ValueError for rows or columns that `side` does not divide."""
    if grid[0] % side or grid[1] % side:
        raise ValueError(
            f"a grid of {grid[0]}x{grid[1]} patches cannot be merged {side} by {side}: resize images to rows and columns of "
            f"patches that {side} divides"
        )
    return grid[0] // side, grid[1] // side


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) over rows and columns."""

    base: float = 10000.0
    """Frequency i of n on an axis is base ** (-i / n)."""
    coordinates: Literal["index", "center", "share"] = "index"
    """Coordinate of a patch on an axis: its row or column number; its center scaled to [-1, 1], times 2 pi (DINOv3); or its
    number over the count of that axis, times `span` (EVA-02)."""
    first: int = 0
    """Number of the first row and column; prefix tokens stand at zero."""
    frequencies: Literal["same", "alternate"] = "same"
    """Both axes have the same frequencies; or those of one series, even ones for rows, odd ones for columns (Pixtral)."""
    axes: Literal[2, 3] = 2
    """2: rows and columns. 3: frames, rows and columns, each a third of the channels; the rest are not turned."""
    span: int = 0
    """Coordinates are scaled so that a grid of any size spans this many columns (SAM 3); 0 leaves them unscaled."""

    def __post_init__(self):
        if not isinstance(self.base, float) or not 1 < self.base < 1e9:
            raise ValueError(f"Rope.base is {self.base!r}, expected a number above 1")
        # field by field: torch.compile traces this, and cannot read type hints
        check_choice("Rope.coordinates", self.coordinates, ("index", "center", "share"))
        check_choice("Rope.frequencies", self.frequencies, ("same", "alternate"))
        check_choice("Rope.axes", self.axes, (2, 3))
        check_whole("Rope.first", self.first, 0)
        check_whole("Rope.span", self.span, 0)
        if self.coordinates == "share" and not self.span:
            raise ValueError("Rope: coordinates 'share' need span, the rows and columns of the grid of training")
        if self.axes == 3 and self.frequencies == "alternate":
            raise ValueError("Rope: alternating frequencies are for two axes, got axes=3")

    def planes(self, head_dim: int) -> int:
        """Planes of an axis in a head of `head_dim` channels."""
        return head_dim // (2 * self.axes)

    def angles(
        self, grid: Grid, head_dim: int, *, frames: int = 1, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (frames * h * w, head_dim) each in fp32, of every patch."""
        count, steps = self.planes(head_dim), self.axes if self.frequencies == "same" else 1
        series = torch.arange(0, 2 * count * self.axes // steps, 2, dtype=torch.float32, device=device)
        frequencies = 1.0 / self.base ** (series / len(series) / 2)
        of_axis = [frequencies] * self.axes if steps > 1 else [frequencies[0::2], frequencies[1::2]]
        sizes = (frames, *grid)[3 - self.axes :]
        axes = torch.meshgrid(*(self._coordinates(size, grid[1], device) for size in sizes), indexing="ij")
        angles = torch.cat([c.reshape(-1, 1) * f for c, f in zip(axes, of_axis, strict=True)], dim=1)
        if self.axes == 2 and frames > 1:
            angles = angles.repeat(frames, 1)
        still = head_dim // 2 - angles.shape[1]
        if still:
            angles = torch.cat([angles, angles.new_zeros(len(angles), still)], dim=1)
        angles = angles.tile(2)
        return angles.cos(), angles.sin()

    def _coordinates(self, size: int, columns: int, device: torch.device | None) -> Tensor:
        index = torch.arange(size, dtype=torch.float32, device=device)
        if self.coordinates == "center":
            return 2 * math.pi * (2 * ((index + 0.5) / size) - 1)
        across = size if self.coordinates == "share" else columns
        return (index + self.first) * (self.span / across if self.span else 1.0)


DINOV3 = Rope(base=100.0, coordinates="center")
"""Siméoni et al. 2025 (arXiv:2508.10104)."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the trailing N tokens of x (B, H, P + N, K), in fp32; prefix tokens stay.

    cos, sin: (N, K), or (B, 1, N, K) where each image kept other patches.
    """
    prefix, patches = x.split([x.shape[-2] - cos.shape[-2], cos.shape[-2]], dim=-2)
    patches = patches.float()
    half = patches.shape[-1] // 2
    turned = torch.cat([-patches[..., half:], patches[..., :half]], dim=-1)
    return torch.cat([prefix, (patches * cos + turned * sin).to(x.dtype)], dim=-2)
