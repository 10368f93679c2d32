"""The architecture of an encoder: `ViTConfig`."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from vlm_vision.nn.checks import (
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    NUMBERS,
    check_choice,
    check_choices,
    check_number,
    check_saved,
    check_sides,
    check_whole,
    is_whole,
)
from vlm_vision.nn.output import Tap
from vlm_vision.nn.position import RESIZE
from vlm_vision.nn.rope import DINOV3, Grid, Rope, merged_grid

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "swiglu", "geglu", "geglu_tanh"]
GATED: tuple[Activation, ...] = ("swiglu", "geglu", "geglu_tanh")
"""Activations of a product with a gate: silu, gelu or gelu_tanh of the gate."""
QKNorm = Literal["none", "head", "width"]
Pool = Literal["none", "cls", "cls_dist", "prefix", "mean", "map", "map_all", "query"]
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
    inner_norm: Literal["none", "mlp", "both"] = "none"
    """A norm before the last linear map of the MLP, or of attention too (EVA-02, BEiT-3; Wang et al. 2022, arXiv:2210.06423)."""
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
    side (RADIO); mean of normed patches; multi-head attention pooling of the patches (SigLIP) or of all tokens (Perception
    Encoder); or a bare query over the tokens (AIMv2)."""
    pool_heads: int = 0
    """Heads of attention pooling; 0 for num_heads."""
    pool_mlp_dim: int = 0
    """Hidden channels of the MLP of attention pooling; 0 for mlp_dim."""
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
        for name in AT_LEAST_ONE:
            check_whole(f"ViTConfig.{name}", getattr(self, name), 1)
        for name in AT_LEAST_ZERO:
            check_whole(f"ViTConfig.{name}", getattr(self, name), 0)
        check_sides("ViTConfig.image_size", self.image_size, 1, "(height, width) in pixels")
        if self.depth > 1000:
            raise ValueError(f"ViTConfig.depth is {self.depth}: no vision transformer has that many blocks")
        check_choices(self)
        check_choice("ViTConfig.position_resize", self.position_resize, RESIZE)
        for name, (fits, expected) in NUMBERS.items():
            check_number(f"ViTConfig.{name}", getattr(self, name), fits, expected)
        if self.mlp_limit is not None and self.mlp not in GATED:
            raise ValueError(f"ViTConfig: mlp_limit is for a gated mlp, one of {', '.join(GATED)}, got {self.mlp!r}")
        if not self.head_width and self.embed_dim % self.num_heads:
            raise ValueError(
                f"ViTConfig: num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}; choose one that does"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"ViTConfig: num_kv_heads {self.kv_heads} does not divide num_heads {self.num_heads}")
        if min(self.image_size) < (side := self.patch_size):
            raise ValueError(f"ViTConfig: image_size {self.image_size} is smaller than one patch of {side} pixels")
        self._check_positions()
        self._check_blocks()
        if self.position_prefix > (most := self.num_prefix_tokens):
            raise ValueError(f"ViTConfig: position_prefix {self.position_prefix} exceeds the {most} prefix tokens")
        distilled = self.pool == "cls_dist" or self.class_input == "distilled"
        if distilled and not (self.class_token and self.num_registers):
            raise ValueError("ViTConfig: a distilled model has a class token and a distillation token (a register)")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("ViTConfig: pool 'cls' needs class_token=True; use 'mean', 'map' or 'none'")
        prefix = range(self.num_prefix_tokens)
        places = self.pool_tokens if isinstance(self.pool_tokens, tuple) else (None,)
        known = all(is_whole(place) and place in prefix for place in places)
        if (self.pool == "prefix") != bool(self.pool_tokens) or not known:
            raise ValueError(
                f"ViTConfig: pool {self.pool!r} does not go with pool_tokens {self.pool_tokens} of {len(prefix)} prefix tokens"
            )
        if self.pool == "none" and (self.pool_head != "none" or (self.num_classes and self.class_input == "pooled")):
            raise ValueError("ViTConfig: pool 'none' leaves nothing for pool_head or the classes; choose a pool")

    def _check_positions(self) -> None:
        if self.rope is not None and (not isinstance(self.rope, Rope) or self.position == "rope2d"):
            raise ValueError(f"ViTConfig.rope is {self.rope!r}, expected a Rope, or None with position 'rope2d'")
        needed = 0 if self.rotary is None else 4 if self.rotary.axes == 2 else 2
        if needed and self.head_dim % needed:
            raise ValueError(
                f"ViTConfig: rotary positions need a head width that {needed} divides, got {self.head_dim}"
            )
        least = int(self.position_grid != (0, 0))
        check_sides("ViTConfig.position_grid", self.position_grid, least, "(rows, columns) of patches")
        if (self.position == "axes") != (self.axis_length > 0):
            raise ValueError(f"ViTConfig: position {self.position!r} does not go with axis_length {self.axis_length}")
        if self.relative_position and not self.window_padding:
            raise ValueError("ViTConfig: relative_position needs window_padding=True, as in SAM")

    def _check_blocks(self) -> None:
        for name in ("full_blocks", "deepstack"):
            blocks = getattr(self, name)
            least = -1 if name == "deepstack" else 0
            if not isinstance(blocks, tuple) or not all(is_whole(i) and least <= i < self.depth for i in blocks):
                raise ValueError(f"ViTConfig.{name} is {blocks!r}, expected block numbers from 0 to {self.depth - 1}")
        if self.full_blocks and not self.window and not self.window_padding:
            raise ValueError("ViTConfig: full_blocks are the exceptions from a window: set window, or leave them out")
        if not is_whole(self.merge_after) or not -1 <= self.merge_after < self.depth:
            raise ValueError(f"ViTConfig.merge_after is {self.merge_after!r}, expected a block from 0, or -1 for none")
        special = [name for name in ("window", "window_padding", "deepstack", "time_position") if getattr(self, name)]
        special += ["merge_after"] * (self.merge_after >= 0) + ["frames"] * (self.frames == "apart")
        if special and self.num_prefix_tokens:
            raise ValueError(f"ViTConfig: {special[0]} is for encoders without class token and registers")
        if self.patch_drop and self.needs_all_patches:
            raise ValueError(
                f"ViTConfig: patch_drop does not go with {self.needs_all_patches}, which needs every patch"
            )
        if self.inner_norm == "both" and self.window_padding:
            raise ValueError("ViTConfig: inner_norm 'both' does not go with window_padding: set inner_norm='mlp'")
        if self.frames != "none" and self.window_padding:
            raise ValueError("ViTConfig: window_padding is for encoders of images: set frames='none'")
        if self.frames == "joined" and self.window:
            raise ValueError("ViTConfig: windows lie in one frame: set frames='apart', or window=0 to join the frames")
        if self.deepstack and not self.deepstack_dim:
            raise ValueError("ViTConfig: deepstack needs deepstack_dim, the width of the language model")
        if self.merge_after >= 0 and (self.window or self.rotary or not self.merge_dim):
            raise ValueError("ViTConfig: merge_after needs merge_dim, and takes no windows or rotary positions")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; those added since version 0.0 only where they are not their default, so that what describes
        a tower, and its fingerprint, stay the same."""
        added = {field.name: field.default for field in fields(self) if field.name not in _OF_VERSION_0_0}
        return {name: value for name, value in asdict(self).items() if name not in added or value != added[name]}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "ViTConfig":
        """The configuration of `to_dict`, also after JSON. Raises ValueError for fields that are not known or missing."""
        check_saved(state, cls, "architecture")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in state.items()
        }
        if state.get("rope") is not None:
            check_saved(state["rope"], Rope, "rope")
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

    def num_patch_tokens(self, height: int, width: int, tap: Tap = Tap()) -> int:
        """Patch tokens of an image of height x width pixels; errors as `token_grid`."""
        rows, columns = self.token_grid(height, width, tap)
        return rows * columns

    def token_grid(self, height: int, width: int, tap: Tap = Tap()) -> Grid:
        """(rows, columns) of the patch tokens at `tap`: those of `grid_of`, halved after the tower has merged patches.

        Raises:
            ValueError: as `grid_of` and `is_merged`, and a grid that the merger does not divide.
        """
        grid = self.grid_of(height, width)
        return merged_grid(grid) if self.is_merged(tap) else grid

    def is_merged(self, tap: Tap) -> bool:
        """Whether the tokens at `tap` are those after the merger in the middle of the tower.

        Raises:
            ValueError: a block that does not exist, or blocks before and after the merger.
        """
        blocks = tap.blocks(self.depth)
        if self.merge_after < 0:
            return False
        if min(blocks) < self.merge_after <= max(blocks):
            raise ValueError(f"{tap} is of blocks before and after the merger of tokens: tap blocks on one side of it")
        return min(blocks) >= self.merge_after

    def mergers(self, last: int) -> list[int]:
        """Places in `deepstack` whose mergers give the deep features of blocks up to `last`, in the order of these blocks."""
        blocks = sorted({block for block in self.deepstack if 0 <= block <= last})
        return [self.deepstack.index(block) for block in blocks]

    @property
    def needs_all_patches(self) -> str:
        """Name of a field whose modules need every patch of an image; "" for none."""
        needs = [name for name in ("window", "window_padding", "deepstack") if getattr(self, name)]
        return (needs + ["merge_after"] * (self.merge_after >= 0) + [""])[0]

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
        if 0 < (most := self.time_position * self.temporal_patch) < frames:
            raise ValueError(
                f"a video of {frames} frames is longer than the {most} frames that this encoder has positions for: "
                "encode it in parts"
            )
        return frames // self.temporal_patch


_OF_VERSION_0_0 = (
    "channels", "class_input", "class_token", "depth", "drop_path", "drop_path_ramp", "embed_dim", "film_dim", "final_norm",
    "image_size", "key_bias", "layer_scale", "mask_token", "mlp", "mlp_bias", "mlp_dim", "norm", "norm_eps", "num_classes",
    "num_heads", "num_registers", "patch_bias", "patch_drop", "patch_norm", "patch_size", "pool", "pool_dim", "pool_head",
    "pool_norm", "position", "position_prefix", "position_resize", "pre_norm", "proj_bias", "qkv_bias", "remainder", "rope_base",
)  # fmt: skip
