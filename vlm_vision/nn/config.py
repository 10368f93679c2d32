"""The architecture of an encoder: `ViTConfig`."""

import difflib
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vlm_vision.nn.position import RESIZE
from vlm_vision.nn.rope import DINOV3, Grid, Rope

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "swiglu", "geglu", "geglu_tanh"]
GATED: tuple[Activation, ...] = ("swiglu", "geglu", "geglu_tanh")
"""Activations of a product with a gate: silu, gelu or gelu_tanh of the gate."""
QKNorm = Literal["none", "head", "width"]
Pool = Literal["none", "cls", "cls_dist", "prefix", "mean", "map", "query"]
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
    """Hidden channels of the MLP (of the product, if it is gated). A count: SO400M has 4304."""
    channels: int = 3
    remainder: Remainder = "floor"
    """Rule for pixels past the last whole patch: left out, as in a strided convolution; an error; or the image is padded
    with zeros to whole patches."""
    temporal_patch: int = 1
    """Frames of a video that one patch spans; an image is repeated that often."""
    frames: Literal["none", "apart", "joined"] = "none"
    """Attention between the frames of a video: none, since videos are refused; each frame apart; or all frames joined."""
    time_position: int = 0
    """Most frames of a clip, to which fixed sin-cos positions are added, none to an image or a clip of one frame (Kimi); 0 for
    clips without them."""
    unit_pixels: bool = False
    """Pixels are in 0..1, and the encoder itself puts them into -1..1 (Gemma 4)."""
    patch_drop: float = 0.0
    """Share of the patches that each image loses in training, at random (Li et al. 2022, arXiv:2212.00794)."""
    class_token: bool = True
    num_registers: int = 0
    """Prefix tokens after CLS that are no patches: DINOv2 registers, DINOv3 storage tokens, DeiT's distillation token."""
    mask_token: bool = False
    """A learned token that replaces masked patches."""
    position: Literal["learned", "sincos2d", "axes", "none", "rope2d"] = "learned"
    """Positions added to patches: a learned table, fixed sin-cos, a learned table for rows and one for columns, or none.
    "rope2d" is none, with the rotary positions of DINOv3."""
    position_grid: Grid = (0, 0)
    """(rows, columns) of the position table; (0, 0) for those of image_size."""
    position_prefix: int = 0
    """Leading prefix tokens that own a row of the position table."""
    position_resize: str = "bicubic"
    """Rule, by name in `vlm_vision.nn.position.RESIZE`, that takes the table off its native grid."""
    axis_length: int = 0
    """Rows of each of the two tables of position "axes": the most rows or columns of patches, and `axis_first` more."""
    axis_first: int = 0
    """Table row of the first row and column of patches."""
    rope: Rope | None = None
    """Rotary positions in attention, alone or with a table; None for none."""
    rope_base: float = 100.0
    """Base of position "rope2d"."""
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
    mlp_limit: float | None = None
    """Most that the gate of a gated MLP, and the size of what it multiplies, may be (GLM-5); None for no limit."""
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    outer_norm: Literal["same", "layer", "rms"] = "same"
    """Norms before and after the blocks; "same" for the one inside them."""
    outer_eps: float = 0.0
    """Epsilon of these norms; 0 for norm_eps."""
    post_norm: bool = False
    """A norm after attention and after the MLP too, before the residual is added (Gemma 4)."""
    head_width: int = 0
    """Channels of an attention head; 0 for embed_dim / num_heads."""
    num_kv_heads: int = 0
    """Key and value heads, each for several query heads; 0 for num_heads."""
    qk_norm: QKNorm = "none"
    """A norm of queries and keys: of each head, or over the width of all heads."""
    qk_kind: Literal["same", "layer", "rms"] = "same"
    """Kind of that norm; "same" for the block's."""
    qk_eps: float = 0.0
    """Epsilon of that norm; 0 for norm_eps."""
    clipped: bool = False
    """Input and output of each linear map in the blocks are clipped to stored bounds (Gemma 4)."""
    value_norm: bool = False
    """An RMSNorm without weights of each value head."""
    attention_scale: float | None = None
    """Factor of the attention logits; None for one over the square root of the head's width."""
    window: int = 0
    """Side, in patches, of the windows that attention is confined to; 0 for none."""
    full_blocks: tuple[int, ...] = ()
    """Blocks, from 0, whose attention spans the image all the same."""
    window_padding: bool = False
    """Windows at the edges are padded to whole ones, and attend to the padding (SAM); otherwise they are smaller."""
    relative_position: bool = False
    """Decomposed relative positions are added to the attention logits (SAM)."""
    merge_after: int = -1
    """Block, from 0, after which each 2 x 2 patches become one token (MiniCPM-V); -1 for none."""
    merge_dim: int = 0
    """Hidden channels of that merger."""
    deepstack: tuple[int, ...] = ()
    """Blocks, from 0, whose tokens go through a separate merger to the language model (DeepStack, arXiv:2406.04334).
    One merger for each entry; that of -1 is never used, as of a block that stands here before."""
    deepstack_merge: int = 2
    """Side of the squares of patches that these mergers make one token of."""
    deepstack_dim: int = 0
    """Channels of these tokens: the width of the language model."""
    layer_scale: float | None = None
    """Initial value of the per-channel residual scale; None for none."""
    drop_path: float = 0.0
    """Stochastic depth of the last block (Huang et al. 2016, arXiv:1603.09382)."""
    drop_path_ramp: bool = True
    """Earlier blocks ramp up to `drop_path` from 0; False drops every block at that rate (DINOv2)."""
    film_dim: int = 0
    """Width of a vector, passed with the pixels, that scales and shifts the channels in each block (FiLM, OpenVLA-OFT); 0: none."""
    final_norm: bool = True
    pool: Pool = "cls"
    """Source of `pooled`: normed CLS; mean of normed CLS and distillation token (DeiT); normed prefix tokens side by
    side (RADIO); mean of normed patches; multi-head attention pooling (SigLIP); or a bare query over the tokens (AIMv2)."""
    pool_tokens: tuple[int, ...] = ()
    """Prefix tokens, from 0, of pool "prefix"."""
    pool_norm: bool = False
    """A norm after the pooling; with final_norm=False the tokens have none (fine-tuned MAE, timm's fc_norm)."""
    pool_head: Literal["none", "linear", "tanh"] = "none"
    """After pooling: nothing, a linear map without bias (CLIP's projection), or a linear map and tanh (BERT's pooler)."""
    pool_dim: int = 0
    """Width after `pool_head`."""
    num_classes: int = 0
    """Outputs of the classification head; 0 for none."""
    class_input: ClassInput = "pooled"
    """Input of the classification head: `pooled`, [CLS | mean of patches] (DINOv2), or the mean of patches (SigLIP);
    distilled: a head on CLS and one on the distillation token, averaged (DeiT)."""

    def __post_init__(self):
        for name in _AT_LEAST_ONE:
            check_whole(f"ViTConfig.{name}", getattr(self, name), 1)
        for name in _AT_LEAST_ZERO:
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
        for name in ("outer_eps", "qk_eps"):
            if not isinstance(getattr(self, name), float) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"ViTConfig.{name} is {getattr(self, name)!r}, expected a small number, or 0.0")
        if not isinstance(self.rope_base, float) or not 1 < self.rope_base < 1e9:
            raise ValueError(f"ViTConfig.rope_base is {self.rope_base!r}, expected a number above 1")
        if self.mlp_limit is not None and not (isinstance(self.mlp_limit, float) and 0 < self.mlp_limit < 1e9):
            raise ValueError(
                f"ViTConfig.mlp_limit is {self.mlp_limit!r}, expected a positive number such as 10.0, or None"
            )
        if self.mlp_limit is not None and self.mlp not in GATED:
            raise ValueError(f"ViTConfig: mlp_limit is for a gated mlp, one of {', '.join(GATED)}, got {self.mlp!r}")
        if self.layer_scale is not None and not (isinstance(self.layer_scale, float) and abs(self.layer_scale) < 1e9):
            raise ValueError(f"ViTConfig.layer_scale is {self.layer_scale!r}, expected a number such as 1e-5, or None")
        if not self.head_width and self.embed_dim % self.num_heads:
            raise ValueError(
                f"ViTConfig: num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}; choose one that does"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"ViTConfig: num_kv_heads {self.kv_heads} does not divide num_heads {self.num_heads}")
        if min(self.image_size) < self.patch_size:
            raise ValueError(
                f"ViTConfig: image_size {self.image_size} is smaller than one patch of {self.patch_size} pixels"
            )
        self._check_positions()
        self._check_blocks()
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
        prefix = range(self.num_prefix_tokens)
        if (self.pool == "prefix") != bool(self.pool_tokens) or not set(self.pool_tokens) <= set(prefix):
            raise ValueError(
                f"ViTConfig: pool {self.pool!r} does not go with pool_tokens {self.pool_tokens} of {len(prefix)} prefix tokens"
            )
        if self.pool == "none" and (self.pool_head != "none" or (self.num_classes and self.class_input == "pooled")):
            raise ValueError(
                "ViTConfig: pool 'none' leaves nothing for pool_head or the classes to read; choose a pool"
            )

    def _check_positions(self) -> None:
        if self.rope is not None and (not isinstance(self.rope, Rope) or self.position == "rope2d"):
            raise ValueError(f"ViTConfig.rope is {self.rope!r}, expected a Rope, or None with position 'rope2d'")
        if self.rotary is not None and self.rotary.axes == 2 and self.head_dim % 4:
            raise ValueError(f"ViTConfig: rotary positions need a head width that 4 divides, got {self.head_dim}")
        if not isinstance(self.position_grid, tuple) or len(self.position_grid) != 2:
            raise ValueError(f"ViTConfig.position_grid is {self.position_grid!r}, expected (rows, columns) of patches")
        for side in self.position_grid:
            check_whole("ViTConfig.position_grid", side, int(any(self.position_grid)))
        if (self.position == "axes") != (self.axis_length > 0):
            raise ValueError(f"ViTConfig: position {self.position!r} does not go with axis_length {self.axis_length}")
        if self.relative_position and not self.window_padding:
            raise ValueError("ViTConfig: relative_position needs window_padding=True, as in SAM")

    def _check_blocks(self) -> None:
        for name in ("full_blocks", "deepstack"):
            blocks = getattr(self, name)
            least = -1 if name == "deepstack" else 0
            if not isinstance(blocks, tuple) or not all(isinstance(i, int) and least <= i < self.depth for i in blocks):
                raise ValueError(f"ViTConfig.{name} is {blocks!r}, expected block numbers from 0 to {self.depth - 1}")
        if not isinstance(self.merge_after, int) or not -1 <= self.merge_after < self.depth:
            raise ValueError(f"ViTConfig.merge_after is {self.merge_after!r}, expected a block from 0, or -1 for none")
        special = [name for name in ("window", "window_padding", "deepstack", "time_position") if getattr(self, name)]
        special += ["merge_after"] * (self.merge_after >= 0) + ["frames"] * (self.frames == "apart")
        if special and self.num_prefix_tokens:
            raise ValueError(f"ViTConfig: {special[0]} is for encoders without class token and registers")
        if self.deepstack and not self.deepstack_dim:
            raise ValueError("ViTConfig: deepstack needs deepstack_dim, the width of the language model")
        if self.merge_after >= 0 and (self.window or self.rotary or not self.merge_dim):
            raise ValueError(
                "ViTConfig: merge_after needs merge_dim, and goes with neither windows nor rotary positions"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; those added since version 0.0 only where they are not their default, so that what describes
        a tower, and its fingerprint, stay the same."""
        added = {field.name: field.default for field in fields(self) if field.name not in _OF_VERSION_0_0}
        return {name: value for name, value in asdict(self).items() if name not in added or value != added[name]}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "ViTConfig":
        """The configuration of `to_dict`, also after JSON. Raises ValueError for fields that are not known."""
        if unknown := sorted(set(state) - {field.name for field in fields(cls)}):
            raise ValueError(
                f"the saved architecture has unknown fields {', '.join(unknown)}: it needs a newer vlm_vision"
            )
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in state.items()
        }
        if isinstance(state.get("rope"), dict):
            values["rope"] = Rope(**state["rope"])
        return cls(**values)

    @property
    def head_dim(self) -> int:
        return self.head_width or self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def rotary(self) -> Rope | None:
        """Rotary positions, those of "rope2d" too."""
        return replace(DINOV3, base=self.rope_base) if self.position == "rope2d" else self.rope

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
    def table_grid(self) -> Grid:
        """(rows, columns) of the position table."""
        return self.position_grid if any(self.position_grid) else self.grid

    @property
    def num_prefix_tokens(self) -> int:
        return int(self.class_token) + self.num_registers

    @property
    def pooled_dim(self) -> int:
        return self.pool_dim if self.pool_head != "none" else self.embed_dim * (len(self.pool_tokens) or 1)

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
        rows, columns = self.token_grid(height, width)
        return rows * columns

    def token_grid(self, height: int, width: int) -> Grid:
        """(rows, columns) of the last block's patch tokens: those of `grid_of`, halved where the tower merges patches.

        Raises:
            ValueError: as `grid_of`, and a grid that the merger does not divide.
        """
        grid = self.grid_of(height, width)
        return grid if self.merge_after < 0 else merged_grid(grid)

    def num_frames(self, frames: int) -> int:
        """Frames of tokens of a video of `frames` frames.

        Raises:
            ValueError: an encoder of images, frames that are no multiple of the temporal patch, or more than time_position.
        """
        if self.frames == "none":
            raise ValueError(f"this encoder takes images, got a video of {frames} frames: encode its frames as a batch")
        if frames < 1 or frames % self.temporal_patch:
            raise ValueError(
                f"a video of {frames} frames is no whole number of temporal patches of {self.temporal_patch} frames: "
                "repeat the last frame, or leave frames out"
            )
        if 0 < self.time_position < frames // self.temporal_patch:
            raise ValueError(
                f"a video of {frames} frames is longer than the {self.time_position * self.temporal_patch} frames that this encoder "
                "has positions for: encode it in parts"
            )
        return frames // self.temporal_patch


_OF_VERSION_0_0 = (
    "channels", "class_input", "class_token", "depth", "drop_path", "drop_path_ramp", "embed_dim", "film_dim", "final_norm",
    "image_size", "key_bias", "layer_scale", "mask_token", "mlp", "mlp_bias", "mlp_dim", "norm", "norm_eps", "num_classes",
    "num_heads", "num_registers", "patch_bias", "patch_drop", "patch_norm", "patch_size", "pool", "pool_dim", "pool_head",
    "pool_norm", "position", "position_prefix", "position_resize", "pre_norm", "proj_bias", "qkv_bias", "remainder", "rope_base",
)  # fmt: skip
_SWITCHES = (
    "class_token", "mask_token", "patch_norm", "pre_norm", "patch_bias", "qkv_bias", "key_bias", "proj_bias", "mlp_bias",
    "final_norm", "pool_norm", "drop_path_ramp", "post_norm", "value_norm", "clipped", "window_padding", "relative_position",
    "unit_pixels",
)  # fmt: skip
_AT_LEAST_ONE = (
    "patch_size", "embed_dim", "depth", "num_heads", "mlp_dim", "channels", "temporal_patch", "deepstack_merge",
)  # fmt: skip
_AT_LEAST_ZERO = (
    "num_registers", "position_prefix", "film_dim", "pool_dim", "num_classes", "axis_length", "axis_first", "head_width",
    "num_kv_heads", "window", "merge_dim", "deepstack_dim", "time_position",
)  # fmt: skip


def merged_grid(grid: Grid) -> Grid:
    """The grid of tokens made of 2 x 2 patches each. Raises ValueError for odd rows or columns."""
    if grid[0] % 2 or grid[1] % 2:
        raise ValueError(
            f"a grid of {grid[0]}x{grid[1]} patches cannot be merged two by two: resize images to an even number of patches"
        )
    return grid[0] // 2, grid[1] // 2


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
