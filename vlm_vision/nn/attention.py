"""Multi-head self-attention, over one sequence an image or over many in one, for vision and text towers.

Shapes: B batch, T tokens, D width, H heads, K head width.
"""

from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.nn.linear import ClippedLinear, Linear, QKVLinear
from vlm_vision.nn.rope import Grid, rotate

Runs = tuple[tuple[int, int], ...]
"""(number of sequences, tokens of each), one after the other; each sequence attends to itself alone."""


class AttentionConfig(Protocol):
    """Fields of `ViTConfig` and `TextConfig` that attention reads."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def key_bias(self) -> bool: ...
    @property
    def proj_bias(self) -> bool: ...
    @property
    def norm(self) -> Literal["layer", "rms"]: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def qk_norm(self) -> Literal["none", "head", "width"]: ...
    @property
    def qk_kind(self) -> Literal["same", "layer", "rms"]: ...
    @property
    def qk_eps(self) -> float: ...
    @property
    def inner_norm(self) -> Literal["none", "mlp", "both"]: ...
    @property
    def value_norm(self) -> bool: ...
    @property
    def clipped(self) -> bool: ...
    @property
    def attention_scale(self) -> float | None: ...


class Context(NamedTuple):
    """Positions of the tokens that go through a block, and which attend to which."""

    rope: tuple[Tensor, Tensor] | None = None
    """Rotary angles of the trailing tokens, see `vlm_vision.nn.rope.rotate`."""
    causal: bool = False
    runs: Runs | None = None
    """The sequences that the T tokens of each row are made of; None for one."""
    offsets: Tensor | None = None
    """(sequences + 1,) int32: start of each of `runs`, and the end of the last."""
    images: Tensor | None = None
    """(images + 1,) int32: start of each image in a packed batch of one, and the end of the last; for stochastic depth."""
    places: Tensor | None = None
    """(B, Q) int64: tokens whose output alone is computed, where sequences are not packed; they attend to all tokens."""
    visible: Tensor | None = None
    """(B, T) bool: the tokens that others attend to, padding left out; None for all. Not with `causal`, not where sequences
    are packed."""
    condition: Tensor | None = None
    """(B, C): the vector that scales and shifts the channels in `FilmBlock`."""
    grid: Grid | None = None
    """(rows, columns) of the patches, for attention in padded windows."""


def norm_of(kind: Literal["layer", "rms"], dim: int, eps: float) -> nn.Module:
    return nn.LayerNorm(dim, eps=eps) if kind == "layer" else nn.RMSNorm(dim, eps=eps)


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, D). With fewer key and value heads each serves several query heads
    (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: AttentionConfig):
        super().__init__()
        self.num_heads, self.kv_heads, self.scale = config.num_heads, config.kv_heads, config.attention_scale
        widths = config.num_heads * config.head_dim, config.kv_heads * config.head_dim
        if config.clipped:
            self.qkv = ClippedLinear(config.embed_dim, *widths, widths[1], bias=config.qkv_bias)
            self.proj = ClippedLinear(widths[0], config.embed_dim, bias=config.proj_bias)
        else:
            linear = Linear if config.key_bias or not config.qkv_bias else QKVLinear
            self.qkv = linear(config.embed_dim, widths[0] + 2 * widths[1], bias=config.qkv_bias)
            self.proj = Linear(widths[0], config.embed_dim, bias=config.proj_bias)
        self.norms = None
        if config.qk_norm != "none":
            widths = (config.head_dim,) * 2 if config.qk_norm == "head" else widths
            kind = config.norm if config.qk_kind == "same" else config.qk_kind
            self.norms = nn.ModuleList(norm_of(kind, width, config.qk_eps or config.norm_eps) for width in widths)
        self.norms_heads = config.qk_norm == "head"
        self.inner = (
            norm_of(config.norm, config.num_heads * config.head_dim, config.norm_eps)
            if config.inner_norm == "both"
            else nn.Identity()
        )
        self.value_eps = config.norm_eps if config.value_norm else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.proj(self.attend(self.qkv(x), context))

    def attend(self, qkv: Tensor, context: Context) -> Tensor:
        """(B, T, (H + 2 key-value heads) K) -> (B, T, H K), before the output projection."""
        q, k, v = self.split(qkv)
        if context.rope is not None:
            q, k = rotate(q, *context.rope), rotate(k, *context.rope)
        if context.runs is not None:
            return self.inner(attention_of_runs(q, k, v, context, scale=self.scale).flatten(2))
        seen = None if context.visible is None else context.visible[:, None, None]
        if context.places is not None:
            if context.causal:
                seen = torch.arange(k.shape[-2], device=k.device) <= context.places[:, None, :, None]
            q = select_tokens(q, context.places)
        causal = context.causal and context.places is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, scale=self.scale)
        return self.inner(out.transpose(1, 2).flatten(2))

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, T, K) each."""
        if self.norms is None and self.kv_heads == self.num_heads:
            q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            head_dim = qkv.shape[-1] // (self.num_heads + 2 * self.kv_heads)
            parts = list(qkv.split([head_dim * n for n in (self.num_heads, self.kv_heads, self.kv_heads)], dim=-1))
            if self.norms is not None and not self.norms_heads:
                parts[:2] = [norm(part) for norm, part in zip(self.norms, parts, strict=False)]
            heads = [part.unflatten(-1, (-1, head_dim)) for part in parts]
            if self.norms is not None and self.norms_heads:
                heads[:2] = [norm(part) for norm, part in zip(self.norms, heads, strict=False)]
            q, k, v = (part.transpose(1, 2) for part in heads)
        if self.value_eps is not None:
            v = F.rms_norm(v, v.shape[-1:], eps=self.value_eps)
        if self.kv_heads != self.num_heads:
            k, v = (part.repeat_interleave(self.num_heads // self.kv_heads, dim=1) for part in (k, v))
        return q, k, v


def select_tokens(x: Tensor, places: Tensor) -> Tensor:
    """The tokens at `places` (B, Q) of x: (B, T, D) -> (B, Q, D), or (B, H, T, K) -> (B, H, Q, K)."""
    places = places[..., None] if x.ndim == 3 else places[:, None, :, None]
    return x.gather(-2, places.expand(*x.shape[:-2], -1, x.shape[-1]))


def attention_of_runs(q: Tensor, k: Tensor, v: Tensor, context: Context, *, scale: float | None = None) -> Tensor:
    """Attention within each sequence of `context.runs`, (B, H, T, K) each -> (B, T, H, K).

    Half precision on CUDA takes the variable-length kernel. Elsewhere each run of equal lengths is one batched call: no
    mask, no padding, no work on pairs that do not attend to each other.
    """
    assert context.runs is not None
    if len(q) == 1 and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0:
        from torch.nn.attention.varlen import varlen_attn

        longest = max(length for _, length in context.runs)
        rows = (x[0].transpose(0, 1) for x in (q, k, v))
        return varlen_attn(*rows, context.offsets, context.offsets, longest, longest, scale=scale)[None]  # type: ignore[index]
    sizes = [count * length for count, length in context.runs]
    out = []
    heads = (x.transpose(1, 2).split(sizes, dim=1) for x in (q, k, v))
    for (_, length), *parts in zip(context.runs, *heads, strict=True):
        rows = (
            part.reshape(-1, length, *part.shape[2:]).transpose(1, 2) for part in parts
        )  # (B * count, H, length, K)
        done = F.scaled_dot_product_attention(*rows, scale=scale).transpose(1, 2)
        out.append(done.reshape(len(q), -1, *done.shape[2:]))
    return torch.cat(out, dim=1)
