"""The text tower of CLIP, SigLIP and TIPSv2: one configuration, one straight forward.

    ids -> token embedding + positions -> blocks -> norm -> one position -> linear map -> TextOutput

The blocks are those of the vision transformer. Shapes: B batch, L tokens, D width, E width of the features.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlm_vision.nn.attention import Context, select_tokens
from vlm_vision.nn.blocks import Block, norm
from vlm_vision.nn.checks import check_choices, check_whole
from vlm_vision.nn.config import Activation

TextPool = Literal["last", "argmax", "eos", "mean"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Everything that decides the architecture."""

    vocab_size: int
    context_length: int
    """Rows of the position table: the most tokens of a text."""
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    """Hidden channels of the MLP."""
    mlp: Activation = "gelu"
    norm_eps: float = 1e-5
    layer_scale: float | None = None
    """Initial value of the per-channel residual scale; None for none."""
    causal: bool = True
    """A token attends to itself and those before it (CLIP); False: to all (SigLIP)."""
    pool: TextPool = "argmax"
    """Position that the features are read from: the last; the highest id, which is the end of text in CLIP's
    vocabulary; or the first that is eos_id. A text without eos_id is read at its first position, as in transformers.
    "mean" is the mean of all tokens but the padding."""
    pool_eps: float = 0.0
    """Number that the mean adds to the count of tokens."""
    position: Literal["learned", "sincos"] = "learned"
    """Table of positions: learned, or sines and cosines, which no checkpoint stores."""
    scale_tokens: bool = False
    """Multiply the token embeddings by the square root of embed_dim."""
    mask_padding: bool = False
    """Let no token attend to the padding, which is pad_id (TIPSv2). Otherwise padding is seen like any token."""
    eos_id: int = 49407
    pad_id: int = 0
    """Token that fills a text up, if the tokenizer names none."""
    proj_dim: int = 0
    """Width of the features after a linear map; 0 for no map."""
    projection_bias: bool = False

    # Other fields of `vlm_vision.nn.blocks.BlockConfig`, the same in every text tower.
    qkv_bias: bool = field(default=True, init=False, repr=False)
    key_bias: bool = field(default=True, init=False, repr=False)
    proj_bias: bool = field(default=True, init=False, repr=False)
    mlp_bias: bool = field(default=True, init=False, repr=False)
    norm: Literal["layer", "rms"] = field(default="layer", init=False, repr=False)
    post_norm: bool = field(default=False, init=False, repr=False)
    qk_norm: Literal["none", "head", "width"] = field(default="none", init=False, repr=False)
    qk_kind: Literal["same", "layer", "rms"] = field(default="same", init=False, repr=False)
    qk_eps: float = field(default=0.0, init=False, repr=False)
    inner_norm: Literal["none", "mlp", "both"] = field(default="none", init=False, repr=False)
    value_norm: bool = field(default=False, init=False, repr=False)
    clipped: bool = field(default=False, init=False, repr=False)
    mlp_limit: float | None = field(default=None, init=False, repr=False)
    attention_scale: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        check_whole("TextConfig.vocab_size", self.vocab_size, 1, most=2**24)
        for name in ("context_length", "embed_dim", "depth", "num_heads", "mlp_dim"):
            check_whole(f"TextConfig.{name}", getattr(self, name), 1)
        for name in ("eos_id", "pad_id", "proj_dim"):
            check_whole(f"TextConfig.{name}", getattr(self, name), 0, most=2**24)
        if self.depth > 1000:
            raise ValueError(f"TextConfig.depth is {self.depth}: no text tower has that many blocks")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"TextConfig: num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}; choose one that does"
            )
        if not isinstance(self.norm_eps, float) or self.norm_eps <= 0:
            raise ValueError(f"TextConfig.norm_eps is {self.norm_eps!r}, expected a small positive number")
        if self.mask_padding and self.causal:
            raise ValueError(
                "TextConfig.mask_padding is True with causal: a causal tower never sees what follows a text"
            )
        check_choices(self)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_heads

    @property
    def features_dim(self) -> int:
        """Width of the features."""
        return self.proj_dim or self.embed_dim


@dataclass
class TextOutput:
    """What a text tower makes of texts, by name."""

    tokens: Tensor
    """(B, L, D), after the final norm."""
    features: Tensor
    """(B, E), one vector for each text, not normalized."""


class TextTransformer(nn.Module):
    """Text transformer of CLIP (Radford et al. 2021, arXiv:2103.00020) and SigLIP (Zhai et al. 2023, arXiv:2303.15343)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        if config.position == "learned":
            self.position = nn.Parameter(torch.empty(1, config.context_length, config.embed_dim))
        else:
            self.register_buffer("position", torch.empty(1, config.context_length, config.embed_dim), persistent=False)
        self.blocks = nn.ModuleList(Block(config, 0.0) for _ in range(config.depth))
        self.norm = norm(config)
        self.head = None
        if config.proj_dim:
            self.head = nn.Linear(config.embed_dim, config.proj_dim, bias=config.projection_bias)
        self.gradient_checkpointing = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initialization of CLIP: normal, narrower where residual branches end."""
        dim, depth = self.config.embed_dim, self.config.depth
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if self.config.position == "learned":
            nn.init.normal_(self.position, std=0.01)
        else:
            self.position = sincos_1d(self.config.context_length, dim).to(self.position)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.normal_(module.attn.qkv.weight, std=dim**-0.5)
                nn.init.normal_(module.attn.proj.weight, std=dim**-0.5 * (2 * depth) ** -0.5)
                nn.init.normal_(module.mlp.fc1.weight, std=(2 * dim) ** -0.5)
                nn.init.normal_(module.mlp.fc2.weight, std=dim**-0.5 * (2 * depth) ** -0.5)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=dim**-0.5)

    def forward(self, ids: Tensor, *, tokens: bool = True) -> TextOutput:
        """Read a batch of texts.

        Args:
            ids: (B, L) int64, L at most context_length, padded as the tokenizer of the checkpoint does.
            tokens: False leaves `tokens` empty, (B, 0, D): the last block computes the place that is read alone.

        Raises:
            ValueError: ids of another shape or type, or more than context_length of them.
        """
        config = self.config
        check_ids(ids, config.context_length)
        x = self.token_embedding(ids)
        if config.scale_tokens:
            x = x * config.embed_dim**0.5
        x = x + self.position[:, : ids.shape[1]]
        visible = ids != config.pad_id if config.mask_padding else None
        context, place = Context(causal=config.causal, visible=visible), self._place(ids)[:, None]
        for i, block in enumerate(self.blocks):
            if not tokens and i == config.depth - 1 and config.pool != "mean":
                context = context._replace(places=place)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context)
        x = self.norm(x)
        if config.pool == "mean":
            kept = (ids != config.pad_id)[..., None]
            features = x.where(kept, 0).sum(dim=1) / (kept.sum(dim=1) + config.pool_eps)
        else:
            features = select_tokens(x, place)[:, 0] if tokens else x[:, 0]
        return TextOutput(x if tokens else x[:, :0], features if self.head is None else self.head(features))

    def _place(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B,): where each text is read."""
        if self.config.pool in ("last", "mean"):
            return torch.full_like(ids[:, 0], ids.shape[1] - 1, dtype=torch.int64)
        scores = ids if self.config.pool == "argmax" else (ids == self.config.eos_id).int()
        return scores.argmax(dim=-1)


def check_ids(ids: Tensor, longest: int) -> None:
    """Raise ValueError for what is no batch of texts of at most `longest` tokens."""
    if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"expected ids of shape (batch, tokens) and type int64, got {tuple(ids.shape)} {ids.dtype}: "
            "pass the result of the tokenizer"
        )
    if not 0 < ids.shape[1] <= longest:
        raise ValueError(
            f"texts of {ids.shape[1]} tokens, but this tower reads 1 to {longest}: "
            "pass the result of the tokenizer, which truncates"
        )


def sincos_1d(length: int, dim: int) -> Tensor:
    """(1, length, dim): sines, then cosines, of positions times frequencies from 1 to 1 / 10000.

    Vaswani et al. 2017 (arXiv:1706.03762), with the frequencies of tensor2tensor; computed in float32, as there.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(length).float()[:, None] * frequencies
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))[None]
