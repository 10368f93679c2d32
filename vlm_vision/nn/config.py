"""What an encoder is, where it is tapped and what it gives: `ViTConfig`, `Tap`, `VisionOutput`."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from vlm_vision.nn.position import RESIZE, Grid

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
Pool = Literal["none", "cls", "cls_dist", "mean", "map", "query"]
ClassInput = Literal["pooled", "cls_mean", "patch_mean", "distilled"]
Remainder = Literal["floor", "error", "pad"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that decides the architecture. Lengths are in pixels, tokens or channels."""

    image_size: tuple[int, int]
    """Native (height, width) in pixels; with patch_size it sets the size of the position table."""
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    """Hidden channels of the MLP (of the gated product, for swiglu). A count: SO400M has 4304."""
    channels: int = 3
    remainder: Remainder = "floor"
    """What becomes of pixels past the last whole patch: not seen, as in a strided convolution; an error; or the image
    is padded to whole patches with zeros, which the patch embedding does not see."""
    patch_drop: float = 0.0
    """Share of the patches that each image loses in training, at random (Li et al. 2022, arXiv:2212.00794)."""
    class_token: bool = True
    num_registers: int = 0
    """Prefix tokens after CLS that are no patches: DINOv2 registers, DINOv3 storage tokens, DeiT's distillation token."""
    mask_token: bool = False
    """A learned token that replaces masked patches."""
    position: Literal["learned", "sincos2d", "rope2d"] = "learned"
    position_prefix: int = 0
    """How many leading prefix tokens own a row of the position table."""
    position_resize: str = "bicubic"
    """Rule, by name in `vlm_vision.nn.position.RESIZE`, that takes the table off its native grid."""
    rope_base: float = 100.0
    patch_norm: bool = False
    """A norm between the patch embedding and the positions (AIMv2)."""
    pre_norm: bool = False
    """A norm between the embedding and the first block (CLIP)."""
    patch_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    """False keeps the key part of the qkv bias at zero (DINOv3)."""
    proj_bias: bool = True
    mlp_bias: bool = True
    mlp: Activation = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    """Initial value of the per-channel residual scale; None for none."""
    drop_path: float = 0.0
    """Stochastic depth of the last block (Huang et al. 2016, arXiv:1603.09382)."""
    drop_path_ramp: bool = True
    """Earlier blocks ramp up to `drop_path` from 0; False drops every block at that rate (DINOv2)."""
    film_dim: int = 0
    """Width of a vector, given with the pixels, that scales and shifts the channels in each block (FiLM, OpenVLA-OFT); 0: none."""
    final_norm: bool = True
    pool: Pool = "cls"
    """What `pooled` is made of: normed CLS; mean of normed CLS and distillation token (DeiT); mean of normed patches;
    multi-head attention pooling (SigLIP); or a bare query over the tokens (AIMv2)."""
    pool_norm: bool = False
    """A norm after the pooling; with final_norm=False the tokens have none (fine-tuned MAE, timm's fc_norm)."""
    pool_head: Literal["none", "linear", "tanh"] = "none"
    """After pooling: nothing, a linear map without bias (CLIP's projection), or a linear map and tanh (BERT's pooler)."""
    pool_dim: int = 0
    """Width after `pool_head`."""
    num_classes: int = 0
    """Outputs of the classification head; 0 for none."""
    class_input: ClassInput = "pooled"
    """What the classification head reads: `pooled`, [CLS | mean of patches] (DINOv2), or the mean of patches (SigLIP);
    distilled: a head on CLS and one on the distillation token, averaged (DeiT)."""

    def __post_init__(self):
        for name in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_dim", "channels"):
            check_whole(f"ViTConfig.{name}", getattr(self, name), 1)
        for name in ("num_registers", "position_prefix", "film_dim", "pool_dim", "num_classes"):
            check_whole(f"ViTConfig.{name}", getattr(self, name), 0)
        if not isinstance(self.image_size, tuple) or len(self.image_size) != 2:
            raise ValueError(f"ViTConfig.image_size is {self.image_size!r}, expected (height, width) in pixels")
        for side in self.image_size:
            check_whole("ViTConfig.image_size", side, 1)
        if self.depth > 1000:
            raise ValueError(f"ViTConfig.depth is {self.depth}: no vision transformer has that many blocks")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"ViTConfig.{name} is {getattr(self, name)!r}, expected True or False")
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < 1:
            raise ValueError(f"ViTConfig.norm_eps is {self.norm_eps!r}, expected a small positive number")
        if not isinstance(self.rope_base, float) or not 1 < self.rope_base < 1e9:
            raise ValueError(f"ViTConfig.rope_base is {self.rope_base!r}, expected a number above 1")
        if self.layer_scale is not None and not (isinstance(self.layer_scale, float) and abs(self.layer_scale) < 1e9):
            raise ValueError(f"ViTConfig.layer_scale is {self.layer_scale!r}, expected a number such as 1e-5, or None")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"ViTConfig: num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}; choose one that does"
            )
        if min(self.image_size) < self.patch_size:
            raise ValueError(
                f"ViTConfig: image_size {self.image_size} is smaller than one patch of {self.patch_size} pixels"
            )
        if self.position == "rope2d" and self.head_dim % 4:
            raise ValueError(f"ViTConfig: rope2d needs a head width that 4 divides, got {self.head_dim}")
        if self.position_prefix > self.num_prefix_tokens:
            raise ValueError(
                f"ViTConfig: position_prefix {self.position_prefix} exceeds the {self.num_prefix_tokens} prefix tokens"
            )
        check_choices(self)
        _check_choice("ViTConfig.position_resize", self.position_resize, RESIZE)
        for name in ("patch_drop", "drop_path"):
            share = getattr(self, name)
            if not isinstance(share, int | float) or not 0 <= share < 1:
                raise ValueError(f"ViTConfig.{name} is {share!r}, expected a share of at least 0 and below 1")
        distilled = self.pool == "cls_dist" or self.class_input == "distilled"
        if distilled and not (self.class_token and self.num_registers):
            raise ValueError("ViTConfig: a distilled model has a class token and a distillation token (a register)")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("ViTConfig: pool 'cls' needs class_token=True; use 'mean', 'map' or 'none'")
        if self.pool == "none" and (self.pool_head != "none" or (self.num_classes and self.class_input == "pooled")):
            raise ValueError(
                "ViTConfig: pool 'none' leaves nothing for pool_head or the classes to read; choose a pool"
            )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def linear_head_dim(self) -> int:
        """Channels that the classification head reads."""
        widths = {"pooled": self.pooled_dim, "cls_mean": 2 * self.embed_dim}
        return widths.get(self.class_input, self.embed_dim)

    @property
    def grid(self) -> Grid:
        """Native (rows, columns) of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        return int(self.class_token) + self.num_registers

    @property
    def pooled_dim(self) -> int:
        return self.pool_dim if self.pool_head != "none" else self.embed_dim

    def grid_of(self, height: int, width: int) -> Grid:
        """(rows, columns) of the patches of an image of height x width pixels, by the `remainder` policy.

        Raises:
            ValueError: a side shorter than a patch; with remainder="error" also one that is no multiple of it.
        """
        patch = self.patch_size
        if height < patch or width < patch:
            raise ValueError(
                f"an image of {height}x{width} pixels is smaller than one patch of {patch}x{patch}: enlarge it"
            )
        if self.remainder == "error" and (height % patch or width % patch):
            raise ValueError(
                f"an image of {height}x{width} pixels is no whole number of {patch}x{patch} patches: resize it, or choose "
                'remainder="floor" (drop the rest) or "pad" (add zeros)'
            )
        if self.remainder == "pad":
            return -(-height // patch), -(-width // patch)
        return height // patch, width // patch

    def num_patch_tokens(self, height: int, width: int) -> int:
        """Patches of an image of height x width pixels; errors as `grid_of`."""
        rows, columns = self.grid_of(height, width)
        return rows * columns


@dataclass(frozen=True)
class Tap:
    """Which tokens to read: the output of block `layer` (-1 is the last), with the family's final norm or without."""

    layer: int = -1
    norm: bool = True

    def __post_init__(self):
        if not isinstance(self.layer, int) or not isinstance(self.norm, bool):
            raise ValueError(
                f"Tap takes a whole number and True or False, got layer={self.layer!r}, norm={self.norm!r}"
            )

    def block(self, depth: int) -> int:
        """Index of the tapped block, 0-based. Raises ValueError if there is no such block."""
        index = self.layer + depth if self.layer < 0 else self.layer
        if not 0 <= index < depth:
            raise ValueError(
                f"Tap(layer={self.layer}) is outside this encoder of {depth} blocks: use {-depth} to {depth - 1}"
            )
        return index


@dataclass
class VisionOutput:
    """What an encoder sees, by name. All tokens come from the same tap."""

    patch_tokens: Tensor
    """(B, N, D), N == h * w, row-major: patches only."""
    grid: Grid
    """(h, w)"""
    cls_token: Tensor | None = None
    """(B, D)"""
    register_tokens: Tensor | None = None
    """(B, R, D)"""
    pooled: Tensor | None = None
    """(B, E), the family's own vector for the image; only from the last block."""
    logits: Tensor | None = None
    """(B, classes); only from the last block of a model with a classification head."""
    kept: Tensor | None = None
    """(B, K) indices of the patches that were seen, where some were dropped: then patch_tokens is (B, K, D)."""


_SWITCHES = (
    "class_token", "mask_token", "patch_norm", "pre_norm", "patch_bias", "qkv_bias", "key_bias", "proj_bias", "mlp_bias",
    "final_norm", "pool_norm", "drop_path_ramp",
)  # fmt: skip


def check_whole(field: str, value: object, least: int, most: int = 2**17) -> None:
    """Raise ValueError unless `value` is a whole number; `most` is more than any width, side or count of a transformer."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{field} is {value!r}: it must be a whole number of at least {least} and at most {most}")


def check_choices(config: object) -> None:
    """Raise ValueError if a field of a dataclass whose type is a Literal has a value that is none of its choices."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            _check_choice(f"{type(config).__name__}.{name}", getattr(config, name), get_args(hint))


def _check_choice(field: str, value: object, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        near = difflib.get_close_matches(str(value), choices)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{field} is {value!r}, expected one of {', '.join(choices)}{hint}")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What a masked autoencoder is beside its encoder; activation, norm and biases of the decoder are the encoder's."""

    embed_dim: int = 512
    depth: int = 8
    num_heads: int = 16
    mlp_dim: int = 2048
    position_resize: Literal["recompute", "bicubic", "row"] = "recompute"
    """Positions off the native grid: sin-cos made anew; the table resized; or resized as if all patches were in one row,
    as transformers does."""
    mask_ratio: float = 0.75
    """Share of the patches that the encoder does not see."""
    normalize: bool = False
    """Whether the targets are pixels of normalized patches (norm_pix_loss)."""

    def __post_init__(self):
        for name in ("embed_dim", "depth", "num_heads", "mlp_dim"):
            check_whole(f"DecoderConfig.{name}", getattr(self, name), 1)
        check_choices(self)
        if not isinstance(self.mask_ratio, int | float) or not 0 <= self.mask_ratio <= 1:
            raise ValueError(f"DecoderConfig.mask_ratio is {self.mask_ratio!r}, expected a share from 0 to 1")
