"""Maps over patch tokens: principal components that images share, nearest patches of two images, similar positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Grid
from vlm_vision.nn.vit import VisionTransformer

_MOST_PATCHES = 1600
"""Patches of the largest grid whose positions the page holds in addition to those of its images."""


@dataclass(frozen=True)
class Components:
    """Three principal components of the patch tokens of several images."""

    maps: list[Tensor]
    """(N, 3) uint8 for each image: the components as red, green and blue, from the 1st to the 99th percentile of all."""
    shares: list[float]
    """Share of the variance of each component."""


def components(tokens: Sequence[Tensor]) -> Components:
    """Principal components (Pearson 1901) of tokens (N, D) of all images together.

    The sign of a component is arbitrary: here the largest coordinate of its direction is positive.
    """
    rows = torch.cat(list(tokens)).double()
    centered = rows - rows.mean(dim=0)
    values, vectors = torch.linalg.eigh(centered.T @ centered)
    values, vectors = values.flip(0).clamp(min=0)[:3], vectors.flip(1)[:, :3]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    scores = centered @ (vectors * largest.sign())
    low, high = (torch.quantile(scores, share, dim=0) for share in (0.01, 0.99))
    shown = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).mul(255).round().to(torch.uint8)
    if shown.shape[1] < 3:
        shown = F.pad(shown, (0, 3 - shown.shape[1]))
    total = centered.square().sum().clamp(min=1e-12)
    return Components(list(shown.split([len(one) for one in tokens])), [float(value / total) for value in values])


def nearest(one: Tensor, other: Tensor) -> Tensor:
    """(N,) int64: for each token of `one` (N, D) the token of `other` (M, D) with the largest cosine similarity."""
    return (F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T).argmax(dim=1)


def positions(model: VisionTransformer, grid: Grid) -> Tensor | None:
    """(N, D) of length one: the scalar product of two rows is the similarity of the positions of two patches.

    Of a table the cosine; of rotary positions the mean cosine of the angles between them. None where there are neither.

    Raises:
        ValueError: a grid that the tower has no positions for.
    """
    config = model.config
    if model.position is not None:
        with torch.no_grad():
            return F.normalize(model.position(grid)[1][0].float().cpu(), dim=-1)
    if config.rotary is None:
        return None
    cosine, sine = (part[:, : config.head_dim // 2] for part in config.rotary.angles(grid, config.head_dim))
    return F.normalize(torch.cat([cosine, sine], dim=1), dim=-1)


def position_grids(config: ViTConfig, used: Sequence[Grid]) -> list[Grid]:
    """Grids whose positions are shown: those in use, that of the table, half and one and a half times its size."""
    native = config.table_grid
    others = [native, *((max(2, int(n * native[0])), max(2, int(n * native[1]))) for n in (0.5, 1.5))]
    small = [grid for grid in others if grid[0] * grid[1] <= _MOST_PATCHES]
    return list(dict.fromkeys([*used, *small]))
