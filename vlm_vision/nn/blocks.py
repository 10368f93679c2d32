"""The parts of a pre-norm transformer block, for vision and text towers alike: attention, MLP, residual.

Shapes: B batch, T tokens, D width, H heads, K head width.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.nn.config import Activation
from vlm_vision.nn.linear import FUSED, Linear, QKVLinear, by_onednn, onednn
from vlm_vision.nn.position import rotate


class BlockConfig(Protocol):
    """What a block wants to know; `ViTConfig` and `TextConfig` both say it."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def mlp_dim(self) -> int: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def key_bias(self) -> bool: ...
    @property
    def proj_bias(self) -> bool: ...
    @property
    def mlp_bias(self) -> bool: ...
    @property
    def mlp(self) -> Activation: ...
    @property
    def norm(self) -> Literal["layer", "rms"]: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def layer_scale(self) -> float | None: ...


class Context(NamedTuple):
    """Which tokens see which, and where they are."""

    rope: tuple[Tensor, Tensor] | None = None
    """Rotary angles of the trailing tokens, see `vlm_vision.nn.position.rotate`."""
    causal: bool = False
    runs: tuple[tuple[int, int], ...] | None = None
    """Packed sequences: (how many, tokens of each), one after the other in a batch of one; each sees only itself."""
    offsets: Tensor | None = None
    """(sequences + 1,) int32: where each packed sequence starts, and the end of the last."""
    places: Tensor | None = None
    """(B, Q) int64: tokens whose output alone is computed, where sequences are not packed; they see what they would see."""
    condition: Tensor | None = None
    """(B, C): what steers the blocks of `vlm_vision.nn.film`."""


def gelu(x: Tensor, inplace: bool) -> Tensor:
    """x * Phi(x), Phi the normal distribution function."""
    return torch.ops.aten.gelu_(x) if inplace else F.gelu(x)


def gelu_tanh(x: Tensor, inplace: bool) -> Tensor:
    """The tanh approximation of GELU, jax's default."""
    return torch.ops.aten.gelu_(x, approximate="tanh") if inplace else F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor, inplace: bool) -> Tensor:
    """x * sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
    return torch.sigmoid_(1.702 * x).mul_(x) if inplace else x * torch.sigmoid(1.702 * x)


def swiglu(x: Tensor, inplace: bool) -> Tensor:
    """silu(gate) * value, x = [gate | value]. Shazeer 2020 (arXiv:2002.05202)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate, inplace=True).mul_(value) if inplace else F.silu(gate) * value


ACTIVATIONS: dict[Activation, Callable[[Tensor, bool], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "swiglu": swiglu,
}


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, D)."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.num_heads = config.num_heads
        linear = Linear if config.key_bias or not config.qkv_bias else QKVLinear
        self.qkv = linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = Linear(config.embed_dim, config.embed_dim, bias=config.proj_bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.proj(self._attend(self.qkv(x), context))

    def _attend(self, qkv: Tensor, context: Context) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        if context.rope is not None:
            q, k = rotate(q, *context.rope), rotate(k, *context.rope)
        if context.runs is not None:
            return packed_attention(q, k, v, context).flatten(2)
        if context.places is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=context.causal).transpose(1, 2).flatten(2)
        seen = None
        if context.causal:
            seen = torch.arange(k.shape[-2], device=k.device) <= context.places[:, None, :, None]
        return (
            F.scaled_dot_product_attention(select_tokens(q, context.places), k, v, attn_mask=seen)
            .transpose(1, 2)
            .flatten(2)
        )


def select_tokens(x: Tensor, places: Tensor) -> Tensor:
    """The tokens at `places` (B, Q) of x: (B, T, D) -> (B, Q, D), or (B, H, T, K) -> (B, H, Q, K)."""
    places = places[..., None] if x.ndim == 3 else places[:, None, :, None]
    return x.gather(-2, places.expand(*x.shape[:-2], -1, x.shape[-1]))


def packed_attention(q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
    """Block-diagonal attention over packed sequences, (1, H, T, K) each -> (1, T, H, K).

    Half precision on CUDA takes the variable-length kernel. Elsewhere each run of equal lengths is one batched call: no
    mask, no padding, no work on pairs that do not see each other.
    """
    assert context.runs is not None
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0:
        from torch.nn.attention.varlen import varlen_attn

        longest = max(length for _, length in context.runs)
        rows = (x[0].transpose(0, 1) for x in (q, k, v))
        return varlen_attn(*rows, context.offsets, context.offsets, longest, longest)[None]  # type: ignore[index]
    sizes = [count * length for count, length in context.runs]
    seen = []
    for run, *parts in zip(context.runs, *(x[0].split(sizes, dim=1) for x in (q, k, v)), strict=True):
        one, two, three = (part.unflatten(1, run).transpose(0, 1) for part in parts)
        seen.append(F.scaled_dot_product_attention(one, two, three).transpose(1, 2).flatten(0, 1))
    return torch.cat(seen)[None]


class Mlp(nn.Module):
    """Linear, activation, linear. For swiglu the first is twice as wide as mlp_dim."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.fc1 = Linear(config.embed_dim, config.mlp_dim * (2 if config.mlp == "swiglu" else 1), bias=config.mlp_bias)
        self.kind: Activation = config.mlp
        self.act = ACTIVATIONS[config.mlp]
        self.fc2 = Linear(config.mlp_dim, config.embed_dim, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        plain = type(self.fc1) is Linear and not self.fc1._forward_hooks and not self.fc1._forward_pre_hooks
        if plain and self.kind in FUSED and by_onednn(x, self.fc1.weight):
            return self.fc2(onednn(x, self.fc1.weight, self.fc1.bias, self.kind))
        x = self.fc1(x)
        # The hidden map is the largest tensor there is: without gradients, and unless a hook on fc1 holds it, it is
        # overwritten.
        inplace = not torch.is_grad_enabled() and not self.fc1._forward_hooks
        return self.fc2(self.act(x, inplace))


class Residual(nn.Module):
    """x + DropPath(LayerScale(y)). Touvron et al. 2021 (arXiv:2103.17239); Huang et al. 2016 (arXiv:1603.09382)."""

    def __init__(self, dim: int, layer_scale: float | None, drop_path: float):
        super().__init__()
        self.scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = drop_path

    def forward(self, x: Tensor, y: Tensor, context: Context = Context()) -> Tensor:
        if self.training and self.drop_path > 0:
            y = y * self._drawn(y, context)
        return x + y if self.scale is None else torch.addcmul(x, y, self.scale)

    def _drawn(self, y: Tensor, context: Context) -> Tensor:
        """0 or 1 / keep for each sequence: (B, 1, 1), or (1, T, 1) where they are packed."""
        keep, packed = 1 - self.drop_path, context.offsets
        count = len(y) if packed is None else len(packed) - 1
        drawn = (torch.rand(count, 1, 1, device=y.device) < keep).to(y.dtype).div_(keep)
        return drawn if packed is None else drawn[:, 0].repeat_interleave(packed.diff(), dim=0)[None]

    @torch.no_grad()
    def fold_into(self, linear: nn.Linear) -> None:
        """Multiply LayerScale, if there is one, into the layer that gives y.

        Raises:
            ValueError: a layer that is no plain linear one, such as one with an adapter that is not merged.
        """
        if self.scale is not None:
            if not isinstance(linear, nn.Linear) or hasattr(linear, "base_layer"):
                raise ValueError(
                    f"LayerScale folds into plain linear layers, got {type(linear).__name__}: merge adapters first "
                    "(peft: merge_and_unload)"
                )
            linear.weight.mul_(self.scale[:, None])
            if linear.bias is not None:
                linear.bias.mul_(self.scale)
            self.scale = None


def norm(config: BlockConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.embed_dim, eps=config.norm_eps)


class Block(nn.Module):
    """Pre-norm transformer block over (B, T, D); with `Context.places` it gives (B, Q, D)."""

    def __init__(self, config: BlockConfig, drop_path: float):
        super().__init__()
        self.norm1 = norm(config)
        self.attn = Attention(config)
        self.residual1 = Residual(config.embed_dim, config.layer_scale, drop_path)
        self.norm2 = norm(config)
        self.mlp = Mlp(config)
        self.residual2 = Residual(config.embed_dim, config.layer_scale, drop_path)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        seen = self.attn(self.norm1(x), context)
        x = self.residual1(x if context.places is None else select_tokens(x, context.places), seen, context)
        return self.residual2(x, self.mlp(self.norm2(x)), context)
