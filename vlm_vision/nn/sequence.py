"""The sequence of tokens of images and videos: rotary angles, and which tokens attend to which.

A sequence is a list of `Part`s, one after the other. Blocks see it through a `Context`; where attention is in windows, the
tokens of a window are put side by side first, so that no block pads or masks.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_vision.nn.attention import Context, Runs
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Grid, merged_grid


class Part(NamedTuple):
    """Images, or videos, of one size."""

    count: int
    frames: int
    grid: Grid


class Plan(NamedTuple):
    """What the blocks of one forward pass need to know of their sequence."""

    full: Context
    """For blocks whose attention spans the image."""
    windowed: Context
    """For blocks whose attention is in windows; `full` where there are none."""
    order: Tensor | None = None
    """(T,) int64: the token that stands at each place of the sequence inside the blocks; None for tokens as they are."""
    back: Tensor | None = None
    """(T,) int64: the place of each token there."""

    def inward(self, x: Tensor) -> Tensor:
        """(B, T, D) as the blocks take it."""
        return x if self.order is None else x[:, self.order]

    def outward(self, x: Tensor) -> Tensor:
        """The inverse of `inward`."""
        return x if self.back is None else x[:, self.back]


def plan(
    config: ViTConfig,
    parts: Sequence[Part],
    *,
    packed: bool,
    device: torch.device,
    keep: Tensor | None = None,
    condition: Tensor | None = None,
) -> Plan:
    """The plan of a sequence; its tensors are made on `device`, so that a CUDA graph may hold their making.

    Args:
        parts: those of the sequence; one part with count 1 where every row of a batch is such a sequence.
        packed: whether the parts lie in a batch of one, images one after the other.
        keep: (B, K) patches that were kept, see `VisionTransformer.forward`.
        condition: (B, C), see `Context`.
    """
    lengths = [_lengths(config, part) for part in parts]
    several = packed or sum(count for count, _ in lengths) > 1
    runs = _joined(lengths) if several else None
    context = Context(
        rope=_rope(config, parts, packed=packed, keep=keep, device=device),
        runs=runs,
        offsets=None if runs is None else _offsets(runs, device),
        images=_offsets(tuple((part.count, _length(config, part)) for part in parts), device) if packed else None,
        condition=condition,
        grid=parts[0].grid,
    )
    if not config.window or config.window_padding:
        return Plan(context, context)
    orders, starts, windows, start = [], [], [], 0
    for part in parts:
        order, offsets, own = _windows(part.grid, config.window, device)
        number, patches = part.count * part.frames, part.grid[0] * part.grid[1]
        frames = torch.arange(start, start + number * patches, patches, device=device)[:, None]
        orders.append((frames + order).flatten())
        starts.append((frames + offsets).flatten())
        windows += own * number
        start += number * patches
    order, ends = torch.cat(orders), torch.full((1,), start, device=device)
    rope = context.rope
    context = context._replace(rope=None if rope is None else (rope[0][order], rope[1][order]))
    windowed = context._replace(runs=_joined(windows), offsets=torch.cat([*starts, ends]).int())
    return Plan(context, windowed, order, order.argsort())


def check_dropping(config: ViTConfig, frames: int) -> None:
    """Raise ValueError unless patches may be left out of an input of `frames` frames of tokens."""
    needs = config.needs_all_patches
    if needs or frames > 1:
        reason = f"it has {needs}" if needs else f"got a video of {frames} frames of tokens"
        raise ValueError(f"this encoder cannot leave patches out by keep or patch_drop: {reason}; encode all patches")


def _lengths(config: ViTConfig, part: Part) -> tuple[int, int]:
    """The sequences of a part that attend to themselves alone, and the tokens of each."""
    if config.frames == "apart":
        return part.count * part.frames, config.num_prefix_tokens + part.grid[0] * part.grid[1]
    return part.count, _length(config, part)


def _length(config: ViTConfig, part: Part) -> int:
    """Tokens of one image or video."""
    return config.num_prefix_tokens + part.frames * part.grid[0] * part.grid[1]


def _joined(runs: Iterable[tuple[int, int]]) -> Runs:
    """Neighboring runs of one length as one."""
    return tuple((sum(count for count, _ in same), length) for length, same in groupby(runs, key=itemgetter(1)))


def _offsets(runs: Runs, device: torch.device) -> Tensor:
    """(sequences + 1,) int32: the start of each sequence, and the end of the last."""
    starts, start = [], 0
    for count, length in runs:
        starts.append(torch.arange(start, start + count * length, length, dtype=torch.int32, device=device))
        start += count * length
    return torch.cat([*starts, torch.full((1,), start, dtype=torch.int32, device=device)])


def _rope(
    config: ViTConfig, parts: Sequence[Part], *, packed: bool, keep: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Angles of the trailing tokens; of all tokens where they are packed, prefix tokens turned by nothing."""
    rope, width = config.rotary, config.head_dim
    if rope is None:
        return None
    if not packed:
        cos, sin = rope.angles(parts[0].grid, width, frames=parts[0].frames, device=device)
        return (cos, sin) if keep is None else (cos[keep][:, None], sin[keep][:, None])
    still = torch.zeros(config.num_prefix_tokens, width, device=device)
    rows = []
    for part in parts:
        cos, sin = rope.angles(part.grid, width, frames=part.frames, device=device)
        rows.append([torch.cat([still + 1, cos]).tile(part.count, 1), torch.cat([still, sin]).tile(part.count, 1)])
    cos, sin = (torch.cat(each) for each in zip(*rows, strict=True))
    return cos, sin


def _windows(grid: Grid, side: int, device: torch.device) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Patches of one frame window by window, (h * w,); the start of each window; and its runs: equal windows stand together.

    Windows start at the first row and column; those at the far edges are smaller (Qwen2.5-VL, arXiv:2502.13923).
    """
    patches = torch.arange(grid[0] * grid[1], device=device).unflatten(0, grid)
    orders, runs = [], []
    for top, bottom, tall in _cuts(grid[0], side):
        for left, right, wide in _cuts(grid[1], side):
            windows = patches[top:bottom, left:right].unflatten(1, (-1, wide)).unflatten(0, (-1, tall)).transpose(1, 2)
            orders.append(windows.flatten())
            runs.append(((bottom - top) // tall * ((right - left) // wide), tall * wide))
    return torch.cat(orders), _offsets(tuple(runs), device)[:-1], runs


def _cuts(size: int, side: int) -> list[tuple[int, int, int]]:
    """(start, end, side) of the whole windows along an axis, and of the smaller one after them, where they are."""
    whole = size - size % side
    return [cut for cut in ((0, whole, side), (whole, size, size % side)) if cut[0] < cut[1]]


def stacked_frames(x: Tensor, parts: Sequence[Part], merge: int) -> list[tuple[Tensor, Grid]]:
    """The patches of each part of a sequence without prefix tokens, one frame below the other, and the grid of them all.

    Raises:
        ValueError: a frame that squares of `merge` x `merge` patches do not fill.
    """
    sizes = [part.count * part.frames * part.grid[0] * part.grid[1] for part in parts]
    pieces = x.split(sizes, dim=1)
    stacked = []
    for piece, part in zip(pieces, parts, strict=True):
        merged_grid(part.grid, merge)
        if part.count > 1:
            piece = piece[0].unflatten(0, (part.count, -1))
        stacked.append((piece, (part.frames * part.grid[0], part.grid[1])))
    return stacked
