"""The sequence of tokens of images and videos: rotary angles, and which tokens attend to which.

A sequence is a list of `Part`s, one after the other. Blocks see it through a `Context`; where attention is in windows, the
tokens of a window are put side by side first, so that no block pads or masks.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_vision.nn.attention import Context, Runs
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Grid


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
    """The plan of a sequence.

    Args:
        parts: those of the sequence; one part with count 1 where every row of a batch is such a sequence.
        packed: whether the parts lie in a batch of one, images one after the other.
        keep: (B, K) patches that were kept, see `VisionTransformer.forward`.
        condition: (B, C), see `Context`.
    """
    lengths = [length for part in parts for length in _lengths(config, part)]
    context = Context(
        rope=_rope(config, parts, packed=packed, keep=keep, device=device),
        runs=_runs(lengths) if len(lengths) > 1 or packed else None,
        offsets=_offsets(lengths, device) if len(lengths) > 1 or packed else None,
        images=_offsets(
            [sum(_lengths(config, part._replace(count=1))) for part in parts for _ in range(part.count)], device
        )
        if packed
        else None,
        condition=condition,
        grid=parts[0].grid,
    )
    if not config.window or config.window_padding:
        return Plan(context, context)
    orders, windows, start = [], [], 0
    for part in parts:
        order, sizes = _windows(part.grid, config.window)
        for _ in range(part.count * part.frames):
            orders.append(torch.tensor(order) + start)
            start += len(order)
            windows += sizes
    order = torch.cat(orders)
    back = order.argsort().to(device)
    order = order.to(device)
    rope = context.rope
    context = context._replace(rope=None if rope is None else (rope[0][order], rope[1][order]))
    return Plan(context, context._replace(runs=_runs(windows), offsets=_offsets(windows, device)), order, back)


def _lengths(config: ViTConfig, part: Part) -> Iterator[int]:
    """Tokens of each sequence that attends to itself alone."""
    prefix, patches = config.num_prefix_tokens, part.grid[0] * part.grid[1]
    if config.frames == "apart":
        return iter([prefix + patches] * (part.count * part.frames))
    return iter([prefix + part.frames * patches] * part.count)


def _runs(lengths: Sequence[int]) -> Runs:
    return tuple((len(list(same)), length) for length, same in groupby(lengths))


def _offsets(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(device)


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


def _windows(grid: Grid, side: int) -> tuple[list[int], list[int]]:
    """Patches of one frame window by window, h * w, and the tokens of each window: equal sizes stand together.

    Windows start at the first row and column; those at the far edges are smaller (Qwen2.5-VL, arXiv:2502.13923).
    """
    (rows, columns), windows = grid, []
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            tall, wide = range(top, min(top + side, rows)), range(left, min(left + side, columns))
            windows.append([row * columns + column for row in tall for column in wide])
    windows.sort(key=len)
    return [patch for window in windows for patch in window], [len(window) for window in windows]
