"""Queries and keys of attention layers, as the blocks themselves compute them, and the weights that follow from them.

Shapes: H heads, T tokens (prefix first, then patches row by row), S keys (the T tokens, then the padding of windows), K width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vlm_vision.nn.attention import Attention, Context
from vlm_vision.nn.rope import Grid, rotate
from vlm_vision.nn.sequence import Plan
from vlm_vision.nn.windows import PaddedWindowAttention


@dataclass(frozen=True)
class LayerAttention:
    """What a layer's softmax reads, for one image: logits are `scale` * queries @ keys.

    Positions are in it: rotary ones have turned queries and keys, relative ones are additional channels.
    """

    queries: Tensor
    """(H, T, K) float32."""
    keys: Tensor
    """(H, S, K) float32, the T tokens first."""
    scale: float
    """Factor of the products."""
    grid: Grid
    """(rows, columns) of the patches at this layer."""
    prefix: int
    """Prefix tokens: CLS and registers."""
    windows: Tensor | None = None
    """(S,) int16: number of the window of each key; a token attends within its own. None for attention to all."""

    @property
    def size(self) -> int:
        """Bytes of queries and keys."""
        return 4 * (self.queries.numel() + self.keys.numel())

    def weights(self, token: int) -> Tensor:
        """Softmax weights (H, S) from one token to all keys, in float64."""
        logits = self.scale * torch.einsum("hk,hsk->hs", self.queries[:, token].double(), self.keys.double())
        if self.windows is not None:
            logits = logits.masked_fill(self.windows != self.windows[token], -torch.inf)
        return logits.softmax(dim=-1)


def layer_attention(attention: Attention, x: Tensor, context: Context, how: Plan, prefix: int) -> LayerAttention:
    """Queries and keys of one layer for one image.

    Args:
        x: (1, T, D), the layer's input, in the order in which the blocks hold tokens.
        context: the layer's.
        how: the plan of the sequence, which puts tokens back in order.
        prefix: number of prefix tokens.
    """
    assert context.grid is not None
    if isinstance(attention, PaddedWindowAttention):
        return _in_padded_windows(attention, x, context.grid)
    q, k, _ = attention.split(attention.qkv(x))
    if context.rope is not None:
        q, k = rotate(q, *context.rope), rotate(k, *context.rope)
    windows = None
    if context.runs is not None:
        lengths = [length for count, length in context.runs for _ in range(count)]
        windows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(torch.int16)
    q, k = q[0], k[0]
    if how.back is not None:
        q, k = q[:, how.back], k[:, how.back]
        windows = None if windows is None else windows[how.back.cpu()]
    return LayerAttention(q.float().cpu(), k.float().cpu(), _scale(attention, q), context.grid, prefix, windows)


def _scale(attention: Attention, queries: Tensor) -> float:
    return queries.shape[-1] ** -0.5 if attention.scale is None else attention.scale


def _in_padded_windows(attention: PaddedWindowAttention, x: Tensor, grid: Grid) -> LayerAttention:
    """Of SAM's kind: windows padded with zeros, relative positions as channels that pick a row and a column."""
    rows, columns = grid
    side, window = attention.side, (attention.side, attention.side) if attention.side else grid
    x = x.unflatten(1, grid)
    if side:
        x = F.pad(x, (0, 0, 0, -columns % side, 0, -rows % side))
    tall, wide = x.shape[1:3]
    i, j = window
    x = rearrange(x, "1 (r i) (c j) d -> (r c) (i j) d", i=i, j=j)
    q, k, _ = attention.split(attention.qkv(x))
    scale = _scale(attention, q)
    extra: list[list[Tensor]] = [[], []]
    if attention.relative is not None:
        for axis, part in enumerate(attention.relative_logits(q, window)):
            place = torch.arange(i * j) // j if axis == 0 else torch.arange(i * j) % j
            extra[0].append(part.flatten(2, 3) / scale)
            extra[1].append(F.one_hot(place, window[axis]).to(k).expand(*k.shape[:3], -1))
    if attention.rope is not None:
        angles = attention.rope.angles(window, q.shape[-1], device=q.device)
        q, k = rotate(q, *angles), rotate(k, *angles)
    q, k = torch.cat([q, *extra[0]], dim=-1), torch.cat([k, *extra[1]], dim=-1)
    q, k = (rearrange(t, "(r c) h (i j) k -> h (r i c j) k", r=tall // i, i=i, j=j).float().cpu() for t in (q, k))
    row, column = torch.arange(tall * wide) // wide, torch.arange(tall * wide) % wide
    inside = (row < rows) & (column < columns)
    order = torch.cat([inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]])
    windows = ((row // i) * (wide // j) + column // j).to(torch.int16)[order] if side else None
    return LayerAttention(q[:, order[: rows * columns]], k[:, order], scale, grid, 0, windows)
