"""The parts of a pre-norm transformer block, for vision and text towers: MLP, residual, and the block itself.

A block may be steered by a vector: FiLM (Perez et al. 2018, arXiv:1709.07871), as OpenVLA-OFT lets the instruction steer its
towers. Shapes: B batch, T tokens, D width, C width of that vector.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.nn.attention import Attention, AttentionConfig, Context, norm_of, select_tokens
from vlm_vision.nn.config import GATED, Activation, ViTConfig
from vlm_vision.nn.linear import FUSED, ClippedLinear, Linear, by_onednn, onednn


class BlockConfig(AttentionConfig, Protocol):
    """Fields of `ViTConfig` and `TextConfig` that a block reads."""

    @property
    def mlp_dim(self) -> int: ...
    @property
    def mlp_bias(self) -> bool: ...
    @property
    def mlp(self) -> Activation: ...
    @property
    def mlp_limit(self) -> float | None: ...
    @property
    def layer_scale(self) -> float | None: ...
    @property
    def post_norm(self) -> bool: ...


def gelu(x: Tensor, inplace: bool) -> Tensor:
    """x * Phi(x), Phi the normal distribution function."""
    return torch.ops.aten.gelu_(x) if inplace else F.gelu(x)


def gelu_tanh(x: Tensor, inplace: bool) -> Tensor:
    """The tanh approximation of GELU, jax's default."""
    return torch.ops.aten.gelu_(x, approximate="tanh") if inplace else F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor, inplace: bool) -> Tensor:
    """x * sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
    return torch.sigmoid_(1.702 * x).mul_(x) if inplace else x * torch.sigmoid(1.702 * x)


def silu(x: Tensor, inplace: bool) -> Tensor:
    """x * sigmoid(x)."""
    return F.silu(x, inplace=inplace)


def relu(x: Tensor, inplace: bool) -> Tensor:
    """max(x, 0)."""
    return F.relu(x, inplace=inplace)


def _gated(act: Callable[[Tensor, bool], Tensor], x: Tensor, inplace: bool) -> Tensor:
    """act(gate) * value, x = [gate | value]. Shazeer 2020 (arXiv:2002.05202)."""
    gate, value = x.chunk(2, dim=-1)
    return act(gate, True).mul_(value) if inplace else act(gate, False) * value


def swiglu(x: Tensor, inplace: bool) -> Tensor:
    """silu(gate) * value, x = [gate | value]."""
    return _gated(silu, x, inplace)


def geglu(x: Tensor, inplace: bool) -> Tensor:
    """gelu(gate) * value, x = [gate | value]."""
    return _gated(gelu, x, inplace)


def geglu_tanh(x: Tensor, inplace: bool) -> Tensor:
    """gelu_tanh(gate) * value, x = [gate | value]."""
    return _gated(gelu_tanh, x, inplace)


def limited(x: Tensor, inplace: bool, *, act: Callable[[Tensor, bool], Tensor], limit: float) -> Tensor:
    """A gated `act` of a gate of at most `limit` and a value from -limit to limit."""
    gate, value = x.chunk(2, dim=-1)
    return act(torch.cat([gate.clamp(max=limit), value.clamp(-limit, limit)], dim=-1), inplace)


ACTIVATIONS: dict[Activation, Callable[[Tensor, bool], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": silu,
    "relu": relu,
    "swiglu": swiglu,
    "geglu": geglu,
    "geglu_tanh": geglu_tanh,
}


class Mlp(nn.Module):
    """Linear, activation, linear. With a gated activation the first is twice as wide as mlp_dim."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        linear, hidden = ClippedLinear if config.clipped else Linear, [config.mlp_dim] * (1 + (config.mlp in GATED))
        self.fc1 = linear(config.embed_dim, *(hidden if config.clipped else [sum(hidden)]), bias=config.mlp_bias)
        self.kind: Activation = config.mlp
        self.act = ACTIVATIONS[config.mlp]
        if config.mlp_limit is not None:
            self.act = partial(limited, act=self.act, limit=config.mlp_limit)
        normed = config.inner_norm != "none"
        self.norm = norm_of(config.norm, config.mlp_dim, config.norm_eps) if normed else nn.Identity()
        self.fc2 = linear(config.mlp_dim, config.embed_dim, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        plain = type(self.fc1) is Linear and not self.fc1._forward_hooks and not self.fc1._forward_pre_hooks
        if plain and self.kind in FUSED and by_onednn(x, self.fc1.weight):
            return self.fc2(self.norm(onednn(x, self.fc1.weight, self.fc1.bias, self.kind)))
        x = self.fc1(x)
        # The hidden map is the largest tensor there is: without gradients, and unless a hook on fc1 holds it, it is
        # overwritten.
        recorded = torch.is_grad_enabled() or torch._C._get_tracing_state() is not None
        inplace = not recorded and not self.fc1._forward_hooks
        return self.fc2(self.norm(self.act(x, inplace)))


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
        keep, packed = 1 - self.drop_path, context.images
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
    return norm_of(config.norm, config.embed_dim, config.norm_eps)


def outer_norm(config: ViTConfig) -> nn.Module:
    """A norm before or after the blocks."""
    kind = config.norm if config.outer_norm == "same" else config.outer_norm
    return norm_of(kind, config.embed_dim, config.outer_eps or config.norm_eps)


class Block(nn.Module):
    """Pre-norm transformer block over (B, T, D); with `Context.places` it gives (B, Q, D).

    With `post_norm` the outputs of attention and MLP are normalized too, before they are added (Gemma 4).
    """

    def __init__(self, config: BlockConfig, drop_path: float, attention: Attention | None = None):
        super().__init__()
        self.norm1 = norm(config)
        self.attn = attention or Attention(config)
        self.post1 = norm(config) if config.post_norm else nn.Identity()
        self.residual1 = Residual(config.embed_dim, config.layer_scale, drop_path)
        self.norm2 = norm(config)
        self.mlp = Mlp(config)
        self.post2 = norm(config) if config.post_norm else nn.Identity()
        self.residual2 = Residual(config.embed_dim, config.layer_scale, drop_path)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.attended(x, context)
        return self.residual2(x, self.post2(self.mlp(self.norm2(x))), context)

    def attended(self, x: Tensor, context: Context) -> Tensor:
        """The first half of the block: x + attention."""
        y = self.post1(self.attn(self.norm1(x), context))
        return self.residual1(x if context.places is None else select_tokens(x, context.places), y, context)


class Film(nn.Module):
    """FiLM: x (1 + scale(c)) + shift(c): (B, T, D), with c (B, C) the same for all tokens of an image."""

    def __init__(self, dim: int, condition_dim: int):
        super().__init__()
        self.scale = nn.Linear(condition_dim, dim)
        self.shift = nn.Linear(condition_dim, dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x * (1 + self.scale(condition)[:, None]) + self.shift(condition)[:, None]


class FilmBlock(Block):
    """A block with FiLM between attention and MLP; `Context.condition` must be there."""

    def __init__(self, config: BlockConfig, drop_path: float, condition_dim: int, attention: Attention | None = None):
        super().__init__(config, drop_path, attention)
        self.film = Film(config.embed_dim, condition_dim)

    @classmethod
    def wrap(cls, block: Block, config: BlockConfig, condition_dim: int) -> "FilmBlock":
        """The parts of a block, and FiLM that is zero at first, in the type and place of its weights."""
        made = cls(config, block.residual1.drop_path, condition_dim)
        like = next(block.parameters())
        made.film.to(like.device, like.dtype)
        for weight in made.film.parameters():
            nn.init.zeros_(weight)
        for name, part in block.named_children():
            setattr(made, name, part)
        return made.train(block.training)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        assert context.condition is not None
        x = self.film(self.attended(x, context), context.condition)
        return self.residual2(x, self.post2(self.mlp(self.norm2(x))), context)


def check_condition(condition: Tensor | None, film_dim: int, like: Tensor) -> Tensor | None:
    """The condition of a batch of as many images as `like`, in its type. Raises ValueError for another shape."""
    if not film_dim:
        if condition is not None:
            raise ValueError("this encoder has no FiLM: leave condition= out")
        return None
    given = None if condition is None else tuple(condition.shape)
    if condition is None or given != (len(like), film_dim):
        raise ValueError(
            f"this encoder is steered by a vector (FiLM) and condition has shape {given}: expected {(len(like), film_dim)}, "
            "for OpenVLA-OFT the mean of the instruction's token embeddings"
        )
    return condition.to(like)
