"""The Vision Transformer: one configuration, one straight forward, every family.

    pixels -> patch embedding + positions -> [CLS | registers | patches] -> blocks -> norm -> VisionOutput

A switch in `ViTConfig` is a fact about the architecture, resolved when the model is built. What only a checkpoint
knows (key names, layouts) lives in `vlm_vision.checkpoints`. Shapes: B batch, T tokens, N patches, D width, H heads,
K head width.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlm_vision.config import Activation, Tap, VisionOutput, ViTConfig
from vlm_vision.position import Grid, PositionTable, rope_2d, rotate


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


class QKVLinear(nn.Linear):
    """One linear map to queries, keys and values whose key bias stays zero, in training too."""

    def forward(self, input: Tensor) -> Tensor:
        query, _, value = self.bias.chunk(3)
        return F.linear(input, self.weight, torch.cat([query, torch.zeros_like(query), value]))


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.num_heads = config.num_heads
        linear = nn.Linear if config.key_bias or not config.qkv_bias else QKVLinear
        self.qkv = linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim, bias=config.proj_bias)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        return self.proj(self._attend(self.qkv(x), rope))

    def _attend(self, qkv: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Linear, activation, linear. For swiglu the first is twice as wide as mlp_dim."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(
            config.embed_dim, config.mlp_dim * (2 if config.mlp == "swiglu" else 1), bias=config.mlp_bias
        )
        self.act = ACTIVATIONS[config.mlp]
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
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

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training and self.drop_path > 0:
            keep = 1 - self.drop_path
            y = y * (torch.rand(y.shape[0], 1, 1, device=y.device) < keep).to(y.dtype).div_(keep)
        return x + y if self.scale is None else torch.addcmul(x, y, self.scale)

    @torch.no_grad()
    def fold_into(self, linear: nn.Linear) -> None:
        """Multiply LayerScale, if there is one, into the layer that gives y."""
        if self.scale is not None:
            linear.weight.mul_(self.scale[:, None])
            if linear.bias is not None:
                linear.bias.mul_(self.scale)
            self.scale = None


def _norm(config: ViTConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.embed_dim, eps=config.norm_eps)


class Block(nn.Module):
    """Pre-norm transformer block over (B, T, D)."""

    def __init__(self, config: ViTConfig, drop_path: float):
        super().__init__()
        self.norm1 = _norm(config)
        self.attn = Attention(config)
        self.residual1 = Residual(config.embed_dim, config.layer_scale, drop_path)
        self.norm2 = _norm(config)
        self.mlp = Mlp(config)
        self.residual2 = Residual(config.embed_dim, config.layer_scale, drop_path)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        x = self.residual1(x, self.attn(self.norm1(x), rope))
        return self.residual2(x, self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """Multi-head attention pooling: one learned probe reads all tokens. Zhai et al. 2022 (arXiv:2106.04560).

    x = attn(probe, tokens); x = x + mlp(norm(x)). Plain linear layers, so that adapters reach each of them.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = _norm(config)
        self.mlp = Mlp(config)
        nn.init.xavier_uniform_(self.probe)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)"""
        q = self.q(self.probe).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (1, H, 1, K)
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q.expand(len(tokens), -1, -1, -1), k, v)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]


class VisionTransformer(nn.Module):
    """Vision Transformer of any family in `vlm_vision.presets`. Dosovitskiy et al. 2020 (arXiv:2010.11929)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        dim, prefix = config.embed_dim, config.num_prefix_tokens
        self.patch_embed = nn.Conv2d(config.channels, dim, config.patch_size, config.patch_size, bias=config.patch_bias)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if config.class_token else None
        self.registers = nn.Parameter(torch.empty(1, config.num_registers, dim)) if config.num_registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.mask_token else None
        self.position = None
        if config.position != "rope2d":
            self.position = PositionTable(
                prefix=min(prefix, config.position_prefix),
                grid=config.grid,
                dim=dim,
                resize=config.position_resize,
                learned=config.position == "learned",
            )
        self.pre_norm = _norm(config) if config.pre_norm else nn.Identity()
        ramp = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in ramp)
        self.norm = _norm(config) if config.final_norm else nn.Identity()
        self.pool = AttentionPool(config) if config.pool == "map" else None
        self.pool_head = None
        if config.pool_head != "none":
            self.pool_head = nn.Linear(dim, config.pool_dim, bias=config.pool_head == "tanh")
        self.head = None
        if config.num_classes:
            widths = {"pooled": config.pooled_dim, "cls_mean": 2 * dim, "patch_mean": dim}
            self.head = nn.Linear(widths[config.class_input], config.num_classes)
        self.gradient_checkpointing = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal(0, 0.02) for weights and tokens, zero biases: the ViT and DINOv2 recipes."""
        for token in (self.cls_token, self.registers):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, pixels: Tensor, *, tap: Tap = Tap(), mask: Tensor | None = None, pool: bool = True
    ) -> VisionOutput:
        """See a batch of pictures.

        Args:
            pixels: (B, C, H, W), normalised as the checkpoint expects.
            tap: whose tokens to return; blocks past it are not run.
            mask: (B, N) bool; True patches are replaced by the mask token before positions are added.
            pool: False leaves `pooled` and `logits` None and saves their cost.

        Raises:
            ValueError: pixels of another shape or channel count, a picture smaller than a patch, a tap that does not
                exist, a mask of another shape or for a model without mask token.
        """
        if not isinstance(tap, Tap):
            raise ValueError(f"tap is {tap!r}, expected a Tap such as Tap(layer=-2, norm=False)")
        last = tap.block(self.config.depth)
        x, grid = self.embed(pixels, mask=mask)
        rope = None
        if self.position is None:
            rope = rope_2d(grid, self.config.head_dim, base=self.config.rope_base, device=x.device)
        for block in islice(self.blocks, last + 1):
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rope, use_reentrant=False)
            else:
                x = block(x, rope)
        tokens = self.norm(x) if tap.norm else x
        prefix = self.config.num_prefix_tokens
        out = VisionOutput(
            patch_tokens=tokens[:, prefix:],
            grid=grid,
            cls_token=tokens[:, 0] if self.cls_token is not None else None,
            register_tokens=tokens[:, prefix - self.config.num_registers : prefix]
            if self.registers is not None
            else None,
        )
        if pool and last == self.config.depth - 1:
            out.pooled, out.logits = self._pool(x, tokens if tap.norm else None)
        return out

    def embed(self, pixels: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Grid]:
        """Input of block 0, (B, P + N, D), and the patch grid."""
        if pixels.ndim != 4 or pixels.shape[1] != self.config.channels:
            raise ValueError(
                f"expected pixels of shape (batch, {self.config.channels}, height, width), got {tuple(pixels.shape)}: "
                "pass the result of preprocess"
            )
        height, width = pixels.shape[-2:]
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        if 0 in grid:
            self.config.num_patch_tokens(height, width)  # says what is wrong
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        if mask is not None:
            x = self._masked(x, mask)
        tokens: list[Tensor] = [token for token in (self.cls_token, self.registers) if token is not None]
        prefix = torch.cat(tokens, dim=1) if tokens else None
        if self.position is not None:
            at_prefix, at_patches = self.position(grid)
            x = at_patches + x
            if prefix is not None:
                owned = at_prefix.shape[1]
                prefix = torch.cat([prefix[:, :owned] + at_prefix, prefix[:, owned:]], dim=1)
        if prefix is not None:
            x = torch.cat([prefix.expand(len(x), -1, -1), x], dim=1)
        return self.pre_norm(x.contiguous()), grid

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.mask_token is None:
            raise ValueError("this encoder has no mask token: mask needs a config with mask_token=True")
        if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"expected a bool mask of shape (batch, patches) = {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
            )
        return torch.where(mask[..., None], self.mask_token.to(x.dtype), x)

    def _pool(self, x: Tensor, normed: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """`pooled` and `logits` from the last block's output x; `normed` is norm(x) where it is at hand."""
        config = self.config
        if config.pool == "none" and self.head is None:
            return None, None
        if normed is None:
            class_alone = config.pool == "cls" and config.class_input == "pooled"
            normed = self.norm(x[:, :1] if class_alone else x)
        assert normed is not None
        patches = normed[:, config.num_prefix_tokens :]
        pooled = None
        if self.pool is not None:
            pooled = self.pool(normed)
        elif config.pool != "none":
            pooled = normed[:, 0] if config.pool == "cls" else patches.mean(dim=1)
        if self.pool_head is not None:
            pooled = self.pool_head(pooled)
            pooled = torch.tanh(pooled) if config.pool_head == "tanh" else pooled
        if self.head is None:
            return pooled, None
        features = patches.mean(dim=1)
        if config.class_input == "pooled":
            assert pooled is not None  # ViTConfig sees to it
            features = pooled
        elif config.class_input == "cls_mean":
            features = torch.cat([normed[:, 0], features], dim=-1)
        return pooled, self.head(features)

    def unreached(self, tap: Tap) -> list[nn.Module]:
        """Modules that take no part in the patch tokens of `tap`: blocks past it, pooling, heads."""
        last = tap.block(self.config.depth)
        parts = [*islice(self.blocks, last + 1, None), self.pool, self.pool_head, self.head]
        return [part for part in parts if part is not None] + ([] if tap.norm else [self.norm])

    def fold_layer_scale(self) -> None:
        """Multiply every LayerScale into the linear layer before it: same outputs, less work. For inference only."""
        for module in self.modules():
            if isinstance(module, Block):
                module.residual1.fold_into(module.attn.proj)
                module.residual2.fold_into(module.mlp.fc2)
        self.config = replace(self.config, layer_scale=None)
