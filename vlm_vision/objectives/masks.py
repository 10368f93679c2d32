"""Masks of patches for self-supervised models: random for MAE, in blocks for iBOT and DINOv2.

Shapes: B images, N patches (row-major), K patches kept. Masks are a function of the generator alone.
"""

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_vision.nn.position import Grid


class RandomMasks(NamedTuple):
    """For each image, the visible and the masked patches."""

    keep: Tensor
    """(B, K) int64, in the order of their noise."""
    mask: Tensor
    """(B, N) bool, True where a patch is masked."""
    restore: Tensor
    """(B, N) int64, the rank of each patch by its noise: [kept | masked] gathered by it is in reading order."""


def patch_noise(batch: int, patches: int, generator: torch.Generator) -> Tensor:
    """(B, N), uniform in [0, 1), on the generator's device: for `random_masking`."""
    return torch.rand(batch, patches, generator=generator, device=generator.device)


def random_masking(noise: Tensor, ratio: float) -> RandomMasks:
    """Keep the int(N * (1 - ratio)) patches of least noise, the first of equal ones. He et al. 2022 (arXiv:2111.06377).

    Args:
        noise: (B, N).
        ratio: share of the patches to mask.

    Raises:
        ValueError: a ratio outside 0 to 1.
    """
    _check_share("ratio", ratio)
    patches = noise.shape[1]
    count = int(patches * (1 - ratio))
    order = noise.argsort(dim=1, stable=True)
    ranks = torch.arange(patches, device=noise.device).expand_as(order)
    restore = torch.empty_like(order).scatter_(1, order, ranks)
    return RandomMasks(order[:, :count], restore >= count, restore)


def block_masks(
    batch: int,
    grid: Grid,
    generator: torch.Generator,
    *,
    share: float = 0.5,
    ratios: tuple[float, float] = (0.1, 0.5),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    least: int = 4,
) -> Tensor:
    """(B, N) bool on the CPU: blocks of patches masked in some images, nothing in the others. Oquab et al. 2023 (arXiv:2304.07193).

    int(B * share) images, drawn at random, are masked. The range of ratios is cut into as many equal pieces; each of
    these images draws its own ratio from its own piece, and int(N * ratio) of its patches are masked.

    Args:
        batch: number of images.
        grid: (rows, columns) of patches.
        share: of the images to mask.
        ratios: least and greatest share of a masked image's patches.
        aspect, least: as in `block_mask`.

    Raises:
        ValueError: a share or ratio outside 0 to 1, or as `block_mask`.
    """
    _check_share("share", share)
    for ratio in ratios:
        _check_share("ratios", ratio)
    masked, device = int(batch * share), generator.device
    edges = torch.linspace(*ratios, masked + 1, dtype=torch.float64, device=device)
    drawn = edges[:-1] + edges.diff() * torch.rand(masked, generator=generator, dtype=torch.float64, device=device)
    counts = [int(grid[0] * grid[1] * ratio) for ratio in drawn.tolist()] + [0] * (batch - masked)
    order = torch.randperm(batch, generator=generator, device=device).tolist()
    masks = [block_mask(counts[i], grid, generator, aspect=aspect, least=least) for i in order]
    return torch.stack(masks) if masks else torch.zeros(0, grid[0] * grid[1], dtype=torch.bool)


def block_mask(
    count: int,
    grid: Grid,
    generator: torch.Generator,
    *,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    least: int = 4,
) -> Tensor:
    """(N,) bool with exactly `count` patches masked, in rectangles as far as they fit and singly for the rest.

    Bao et al. 2022, BEiT (arXiv:2106.08254), algorithm 1: rectangles of log-uniform aspect and uniform area are drawn until
    `count` patches are masked or ten in a row do not fit. The remaining patches are drawn one by one, as in DINOv3.

    Args:
        count: patches to mask.
        grid: (rows, columns) of patches.
        aspect: least and greatest height / width of a rectangle.
        least: smallest area of a rectangle in patches, where that many are still to be masked.

    Raises:
        ValueError: more patches than the grid has, or an aspect that is not a range of positive numbers.
    """
    rows, columns = grid
    if not 0 <= count <= rows * columns:
        raise ValueError(f"cannot mask {count} patches of a grid of {rows}x{columns}: expected 0 to {rows * columns}")
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect is {aspect}, expected the least and the greatest height / width, both above 0")
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    draw, mask, missing = random.Random(int(seed)), torch.zeros(rows, columns, dtype=torch.bool), count
    while missing and (added := _add_block(mask, missing, draw, aspect, least)):
        missing -= added
    flat = mask.flatten()
    flat[draw.sample((~flat).nonzero()[:, 0].tolist(), missing)] = True
    return flat


def _add_block(mask: Tensor, most: int, draw: random.Random, aspect: tuple[float, float], least: int) -> int:
    """Mask one rectangle with at most `most` new patches, in place; returns how many are new, 0 if ten did not fit."""
    rows, columns = mask.shape
    for _ in range(10):
        area, shape = draw.uniform(least, most), math.exp(draw.uniform(*map(math.log, aspect)))
        height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if height < rows and width < columns:
            top, left = draw.randint(0, rows - height), draw.randint(0, columns - width)
            block = mask[top : top + height, left : left + width]
            new = height * width - int(block.sum())
            if 0 < new <= most:
                block.fill_(True)
                return new
    return 0


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} holds {value}, expected a share from 0 to 1")
