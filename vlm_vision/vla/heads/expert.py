"""An action expert: a small transformer that attends to the cache of a language model layer by layer (pi0, Black et
al. 2024, arXiv:2410.24164).

Layer i of the expert attends to the keys and values that layer i of the language model keeps of the prompt, and to its own.
So it works on any language model that keeps such a cache, and the prompt is read once, however often the expert runs.

Shapes: B batch, T tokens of the prompt, Q tokens of the expert, H heads, G heads of keys and values, K head width.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vlm_vision.nn.rope import rotate
from vlm_vision.vla.heads.prefix import Prefix, output_cache


@dataclass(frozen=True)
class Shape:
    """What an expert has to share with its language model."""

    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """Of a HuggingFace configuration. Raises ValueError for one that has no such heads."""
        heads = getattr(config, "num_attention_heads", None)
        if not heads or not getattr(config, "num_hidden_layers", None):
            raise ValueError(
                f"a {config.model_type} has no attention layers that an action expert can attend to: choose another head"
            )
        kept = getattr(config, "num_key_value_heads", None) or heads
        return cls(
            config.num_hidden_layers, heads, kept, getattr(config, "head_dim", None) or config.hidden_size // heads
        )


@dataclass(frozen=True)
class PromptCache:
    """A prompt that the language model has read."""

    keys: list[Tensor]
    """Keys of each layer (B, G, T, K), with the language model's rotary positions if it has them."""
    values: list[Tensor]
    mask: Tensor
    """Mask (B, T), 0 for padding."""
    rotary: Any
    """Rotary embedding of the language model, or None."""

    @classmethod
    def of(cls, prefix: Prefix, *, detach: bool) -> "PromptCache":
        """Let the language model read a prompt.

        Raises:
            ValueError: a language model that keeps no keys and values of the whole prompt in every layer.
        """
        decoder: Any = prefix.vlm.get_decoder()
        out = prefix.vlm(inputs_embeds=prefix.embeds, attention_mask=prefix.mask, logits_to_keep=1, use_cache=True)
        layers = getattr(output_cache(out), "layers", None)
        if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
            raise ValueError(
                f"{type(decoder).__name__} keeps no cache of keys and values: turn gradient checkpointing off, or "
                "choose another head"
            )
        kept: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in layers]
        if any(keys.shape[2] != prefix.mask.shape[1] for keys, _ in kept):
            raise ValueError(
                f"{type(decoder).__name__} does not keep the beginning of a prompt of {prefix.mask.shape[1]} tokens in some "
                "layers: choose another head"
            )
        if detach:
            kept = [(keys.detach(), values.detach()) for keys, values in kept]
        else:
            _gathered_for_backward(decoder, kept[-1])
        keys, values = zip(*kept, strict=True)
        return cls(list(keys), list(values), prefix.mask, _rotary(decoder))


def _gathered_for_backward(decoder: Any, kept: tuple[Tensor, Tensor]) -> None:
    """FSDP2 gathers a layer again when the gradient of its output comes; nothing here depends on the last layer's output,
    only on its keys and values."""
    shards = [layer for layer in decoder.modules() if isinstance(layer, FSDPModule)]

    def gather(_: Tensor) -> None:
        shards[-1].unshard()

    for tensor in kept:
        if shards and tensor.requires_grad:
            tensor.register_hook(gather)


def _rotary(decoder: Any) -> Any:
    """The module that gives (cos, sin) of positions; None where the language model adds its positions to words."""
    module = getattr(decoder, "rotary_emb", None)
    if module is not None and "layer_type" in inspect.signature(module.forward).parameters:
        raise ValueError(
            f"{type(decoder).__name__} has different rotary positions in different layers, which the action expert does not support: choose "
            "another head"
        )
    return module


class ActionExpert(nn.Module):
    """Tokens (B, Q, D) -> (B, Q, D), each layer attends to the same layer of the language model.

    Blocks are those of Gemma: RMSNorm, attention without biases, a gated MLP with the tanh GELU.
    """

    def __init__(self, shape: Shape, *, width: int, mlp_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(ExpertLayer(shape, width, mlp_dim) for _ in range(shape.depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: Tensor, held: PromptCache, blocks: Tensor) -> Tensor:
        """
        Args:
            blocks: (Q,) ascending; a token sees the prompt and all tokens of its block and of earlier ones.
        """
        count = x.shape[1]
        seen = torch.cat(
            [
                held.mask.bool()[:, None].expand(-1, count, -1),
                (blocks[None, :] <= blocks[:, None])[None].expand(len(x), -1, -1),
            ],
            dim=2,
        )[:, None]
        rope = None
        if held.rotary is not None:
            places = held.mask.sum(1, keepdim=True) + torch.arange(count, device=x.device)
            rope = tuple(part[:, None].float() for part in held.rotary(x, places))
        for layer, keys, values in zip(self.layers, held.keys, held.values, strict=True):
            x = layer(x, keys.to(x.dtype), values.to(x.dtype), seen, rope)
        return self.norm(x)


class ExpertLayer(nn.Module):
    """One layer of an `ActionExpert`."""

    def __init__(self, shape: Shape, width: int, mlp_dim: int):
        super().__init__()
        self.head_dim, wide = shape.head_dim, shape.num_heads * shape.head_dim
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q = nn.Linear(width, wide, bias=False)
        self.k = nn.Linear(width, shape.num_kv_heads * shape.head_dim, bias=False)
        self.v = nn.Linear(width, shape.num_kv_heads * shape.head_dim, bias=False)
        self.o = nn.Linear(wide, width, bias=False)
        self.gate, self.up = nn.Linear(width, mlp_dim, bias=False), nn.Linear(width, mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, width, bias=False)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, seen: Tensor, rope: Any) -> Tensor:
        y = self.norm1(x)
        q, k, v = (linear(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        if rope is not None:
            q, k = _rotated(q, *rope), _rotated(k, *rope)
        k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.gelu(self.gate(y), approximate="tanh") * self.up(y))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, Q, K) by angles (B, 1, Q, R): the first R numbers are rotated, the rest stays."""
    rotated = rotate(x[..., : cos.shape[-1]], cos, sin)
    return torch.cat([rotated, x[..., cos.shape[-1] :]], dim=-1)
