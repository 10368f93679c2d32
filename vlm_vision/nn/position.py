"""Positions that are added to tokens: learned tables and their resize, fixed sin-cos. `vlm_vision.nn.rope` has rotary ones.

Shape legend: B batch, N patches (h * w, row-major), P prefix tokens, D width.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vlm_vision.nn.rope import Grid


def _interpolate(mode: str, *, antialias: bool = False, align_corners: bool | None = False):
    def resize(table: Tensor, grid: Grid) -> Tensor:
        if antialias and torch.compiler.is_compiling():  # the backward of PyTorch's kernel knows no symbolic sizes
            return _by_matrices(table, grid, 0.0, _triangle if mode == "bilinear" else partial(_cubic, a=-0.5))
        return F.interpolate(table, size=grid, mode=mode, antialias=antialias, align_corners=align_corners)

    return resize


def _offset(mode: str, kernel: Callable[[Tensor], Tensor]):
    # The +0.1 of the original DINOv2 code: the kernel takes its coordinates from the scale, so every value moves.
    def resize(table: Tensor, grid: Grid) -> Tensor:
        if torch.compiler.is_compiling():  # a scale, unlike a size, would be a constant: one graph for each grid
            return _by_matrices(table, grid, 0.1, kernel, antialias=False, copies=mode == "bilinear")
        scale = ((grid[0] + 0.1) / table.shape[-2], (grid[1] + 0.1) / table.shape[-1])
        return F.interpolate(table, scale_factor=scale, mode=mode, align_corners=False)

    return resize


def _by_matrices(
    table: Tensor,
    grid: Grid,
    offset: float,
    kernel: Callable[[Tensor], Tensor],
    *,
    antialias: bool = True,
    copies: bool = False,
) -> Tensor:
    """The resize of PyTorch's kernels as two matrix products, in plain tensor operations: equal up to rounding.

    Args:
        offset: what the scale is too large by, in patches.
        copies: whether an axis of equal size is copied, as PyTorch's bilinear kernel for CPUs does.
    """
    edge = 0 if antialias else 2  # rows repeated past the border; with antialiasing weights past it are left out
    if edge:
        table = F.pad(table, (edge,) * 4, mode="replicate")
    weights = []
    for axis, n in ((-2, grid[0]), (-1, grid[1])):
        size = table.shape[axis]
        sides = torch.arange(n, n + 1, dtype=torch.float32, device=table.device)
        step = (size - 2 * edge) / (sides + offset * (sides != size - 2 * edge) if copies else sides + offset)
        centers = (torch.arange(n, dtype=torch.float32, device=table.device) + 0.5) * step + edge
        distance = torch.arange(size, dtype=torch.float32, device=table.device) + 0.5 - centers[:, None]
        weight = kernel((distance / step.clamp(min=1) if antialias else distance).abs())
        weights.append(weight / weight.sum(dim=1, keepdim=True))
    return weights[0] @ table @ weights[1].T


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys 1981, Cubic convolution interpolation for digital image processing, eq. 4 (a=-0.5) and its relatives."""
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * a * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _bucket(table: Tensor, grid: Grid) -> Tensor:
    # Idefics3 and SmolVLM look rows up: the patch that starts at the fraction i / n of the image takes the row there.
    for axis, n in ((-2, grid[0]), (-1, grid[1])):
        size = table.shape[axis]
        fractions = (torch.arange(n, dtype=torch.float32) * (1.0 / torch.tensor(n))).clamp(max=1.0 - 1e-6)
        rows = torch.bucketize(fractions, torch.arange(1 / size, 1.0, 1 / size), right=True)
        table = table.index_select(axis, rows.to(table.device))
    return table


def _sampled(mode: str, outside: str):
    def resize(table: Tensor, grid: Grid) -> Tensor:
        rows, columns = ((torch.arange(n, device=table.device) + 0.5) / n * 2 - 1 for n in grid)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)[None]
        return F.grid_sample(table, places.to(table), mode=mode, padding_mode=outside, align_corners=False)

    return resize


def _zeros_outside_transposed(table: Tensor, grid: Grid) -> Tensor:
    # Muse resizes to columns x rows, and adds the result row by row all the same: on a grid that is not square it mixes places.
    return _sampled("bilinear", "zeros")(table, (grid[1], grid[0])).flatten(2).unflatten(2, grid)


def _crop(table: Tensor, grid: Grid) -> Tensor:
    # RADIO resizes to a square over the longer side, and keeps its first rows and columns.
    side = max(grid)
    square = F.interpolate(table, size=(side, side), mode="bilinear", align_corners=False)
    return square[..., : grid[0], : grid[1]]


def _tile(table: Tensor, grid: Grid) -> Tensor:
    repeats = [-(-n // size) for n, size in zip(grid, table.shape[-2:], strict=True)]
    return table.tile(repeats)[..., : grid[0], : grid[1]]


def _native(table: Tensor, grid: Grid) -> Tensor:
    raise ValueError(
        f"this reference has positions for {table.shape[-2]}x{table.shape[-1]} patches only, got {grid[0]}x{grid[1]}: "
        'give images of the native size, or load with reference="timm" to resize them'
    )


def _recompute(table: Tensor, grid: Grid) -> Tensor:
    dim = table.shape[1]
    return rearrange(sincos_2d(grid, dim).to(table.device), "(h w) d -> 1 d h w", h=grid[0])


RESIZE: dict[str, Callable[[Tensor, Grid], Tensor]] = {
    "bicubic": _interpolate("bicubic"),  # transformers: ViT, CLIP, SigLIP, DINOv2; DeiT and MAE at load
    "bicubic_antialias": _interpolate("bicubic", antialias=True),  # timm; DINOv2 with registers; open_clip at load
    "bicubic_offset": _offset("bicubic", lambda x: _cubic(x, a=-0.75)),  # facebookresearch/dinov2 without registers
    "bicubic_offset_unequal": _offset(
        "bicubic", lambda x: _cubic(x, a=-0.75)
    ),  # facebookresearch/dino; transformers: Idefics
    "bicubic_offset_always": _offset("bicubic", lambda x: _cubic(x, a=-0.75)),
    "bilinear_offset": _offset("bilinear", lambda x: _triangle(x)),  # HY-V4-VL
    "bilinear": _interpolate("bilinear"),  # timm's npz loader, FlexiViT
    "bilinear_antialias": _interpolate("bilinear", antialias=True),  # SigLIP2 NaFlex
    "zoom": _interpolate("bilinear", align_corners=True),  # big_vision at load: scipy.ndimage.zoom, order 1
    "bucket": _bucket,  # facebookresearch/dino; transformers: Idefics3, SmolVLM
    "recompute": _recompute,  # 2D sin-cos computed for the grid: AIMv2 native
    "bilinear_zeros_transposed": _zeros_outside_transposed,  # Muse
    "bilinear_crop": _crop,  # RADIO
    "bicubic_sampled": _sampled("bicubic", "border"),  # GLM-4V: bicubic up to rounding, with places in -1..1
    "tile": _tile,  # SAM 3
    "native": _native,  # none: transformers' AIMv2
}
"""The resize of a (1, D, h, w) fp32 position table to a grid, one entry for each rule in public code. Those named "always"
move the table on its native grid too, those named "unequal" there for images whose sides differ in pixels."""


def once(rule: str) -> str:
    """The rule for a table that `rule` has made: the same, but it leaves the native grid as it is."""
    return rule.removesuffix("_always").removesuffix("_unequal")


class PositionTable(nn.Module):
    """Learned (or fixed 2D sin-cos) positions: one row for each of P leading prefix tokens, then one for each patch.

    Off the native grid, or always, the patch rows are resized by the rule named `resize`; without gradients the result is kept
    per grid until the table changes. (A change through `.data`, which PyTorch does not record, is not seen.)
    """

    keeps = True
    """Set to False to disable caching, e.g. under FSDP where the table is gathered for every step. A table made in
    inference mode is not cached either: it has no version to compare."""

    def __init__(self, *, prefix: int, grid: Grid, dim: int, resize: str, learned: bool = True):
        super().__init__()
        self.prefix, self.grid, self.resize = prefix, grid, resize
        self.table = nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], dim), requires_grad=learned)
        self._cache: dict[Grid, tuple[tuple, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02) rows; for fixed positions the sin-cos table with zeros for the prefix."""
        with torch.no_grad():
            if self.table.requires_grad:
                nn.init.trunc_normal_(self.table, std=0.02)
            elif self.table.device.type != "meta":
                self.table.zero_()
                self.table[0, self.prefix :] = sincos_2d(self.grid, self.table.shape[-1])

    def forward(self, grid: Grid, sides: Grid | None = None) -> tuple[Tensor, Tensor]:
        """Rows of the prefix (1, P, D) and of the patches (1, h*w, D) for `grid`.

        Args:
            sides: (height, width) of the image in pixels; None for a whole number of patches.
        """
        return self.table[:, : self.prefix], self._patches(grid, sides)

    def _patches(self, grid: Grid, sides: Grid | None) -> Tensor:
        native = self.table[:, self.prefix :]
        moved = self.resize.endswith("_always")
        if self.resize.endswith("_unequal") and sides is not None:
            moved = sides[0] != sides[1]
        if grid == self.grid and not moved:
            return native
        trained = torch.is_grad_enabled() and self.table.requires_grad
        if trained or not self.keeps or torch.compiler.is_compiling() or self.table.is_inference():
            return self._resized(native, grid)
        stamp = (self.table.data_ptr(), self.table._version, self.table.dtype, self.table.device)
        held = self._cache.get(grid)
        if held is None or held[0] != stamp:
            if len(self._cache) >= 32:  # the oldest grid makes room
                self._cache.pop(next(iter(self._cache)))
            held = self._cache[grid] = (stamp, self._resized(native, grid))
        return held[1]

    def _resized(self, native: Tensor, grid: Grid) -> Tensor:
        square = rearrange(native.float(), "1 (h w) d -> 1 d h w", h=self.grid[0])
        return rearrange(RESIZE[self.resize](square, grid), "1 d h w -> 1 (h w) d").to(native.dtype).contiguous()


class AxisTables(nn.Module):
    """A learned table for rows and one for columns, whose entries are added (Gemma 4, Pix2Struct).

    Args:
        length: entries of each table.
        first: entry of the first row and column.
    """

    def __init__(self, *, length: int, first: int, dim: int):
        super().__init__()
        self.first = first
        self.rows = nn.Parameter(torch.empty(length, dim))
        self.columns = nn.Parameter(torch.empty(length, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02) entries."""
        for table in (self.rows, self.columns):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, grid: Grid, sides: Grid | None = None) -> tuple[Tensor, Tensor]:
        """No rows of a prefix, (1, 0, D), and the positions of the patches (1, h*w, D); `sides` have no effect.

        Raises:
            ValueError: a grid with more rows or columns than the tables have entries.
        """
        most = len(self.rows) - self.first
        if max(grid) > most:
            raise ValueError(
                f"this encoder has positions for {most} rows and columns of patches, got {grid[0]}x{grid[1]}"
            )
        rows, columns = (t[self.first : self.first + n] for t, n in zip((self.rows, self.columns), grid, strict=True))
        return self.rows[None, :0], (rows[:, None] + columns).flatten(0, 1)[None]


def time_sincos(frames: int, dim: int) -> Tensor:
    """Fixed positions of the frames of a clip, (frames, D): [sin | cos] of the frame's number, from 0 (Kimi)."""
    omega = 1.0 / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.arange(frames, dtype=torch.float32)[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(grid: Grid, dim: int, *, base: float = 10000.0) -> Tensor:
    """Fixed 2D sin-cos positions, (h*w, D): half of the width encodes the column, half the row.

    He et al. 2021, Masked Autoencoders (arXiv:2111.06377), `get_2d_sincos_pos_embed`; angles in float64, as there.
    """
    if dim % 4:
        raise ValueError(f"2D sin-cos positions need a width that 4 divides, got {dim}: choose another embed_dim")
    omega = base ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows, cols = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * omega for axis in (cols, rows)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()
