"""The towers of Qwen2-VL to Qwen3.5, and of models that took them: rotary positions, two frames a patch, native resolution."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from vlm_vision.checkpoints.families.blocks import QWEN_BLOCKS
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import (
    HALF,
    OPENAI,
    activation,
    activation_back,
    gated,
    gated_back,
)
from vlm_vision.checkpoints.families.rotary import rope_back, rope_theta
from vlm_vision.checkpoints.keys import ONE_FRAME, Key, TensorLayout, key, layer
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope

NATIVE = 32
"""Sides, in patches, of the native size of towers without a table of positions: they take any."""


def video_config(config: Json, **facts) -> ViTConfig:
    """The fields that towers of native resolution share, under Qwen's names."""
    patch = config["patch_size"]
    check_head_dim(config)
    sides = config.get("num_position_embeddings")
    side = NATIVE if sides is None else math.isqrt(sides)
    if sides is not None and side * side != sides:
        raise ValueError(f"num_position_embeddings is {sides}: expected the square of a whole number")
    fields: Json = dict(
        image_size=(side * patch, side * patch),
        patch_size=patch,
        embed_dim=config["hidden_size"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_dim=config.get("intermediate_size"),
        channels=config["in_channels"],
        class_token=False,
        temporal_patch=config["temporal_patch_size"],
        frames="apart",
        remainder="error",
        position="none",
        rope=Rope(base=rope_theta(config)),
        final_norm=False,
        pool="none",
    )
    return ViTConfig(**(fields | facts))


def check_head_dim(config: Json) -> None:
    """Raise ValueError for a head_dim with which transformers' own towers do not run."""
    heads, given = config["num_heads"], config.get("head_dim")
    if given and given * heads != config["hidden_size"]:
        raise ValueError(
            f"head_dim is {given} with hidden_size {config['hidden_size']} and {heads} heads: expected their ratio"
        )


def _qwen2(config: Json, names: frozenset[str]) -> ViTConfig:
    width = config["embed_dim"]
    config = config | {"hidden_size": width, "intermediate_size": int(width * config["mlp_ratio"])}
    return video_config(config, mlp=activation(config), patch_bias=False)


def _qwen2_5(config: Json, names: frozenset[str]) -> ViTConfig:
    merge, patch = config["spatial_merge_size"], config["patch_size"]
    if config["window_size"] < merge * patch:
        raise ValueError(
            f"window_size is {config['window_size']}: expected at least a square of {merge} x {merge} patches of {patch} pixels"
        )
    return video_config(
        config,
        mlp=gated(config),
        norm="rms",
        patch_bias=False,
        window=config["window_size"] // merge // patch * merge,
        full_blocks=tuple(i for i in config["fullatt_block_indexes"] if 0 <= i < config["depth"]),
    )


def _exaone(config: Json, names: frozenset[str]) -> ViTConfig:
    groups = config["num_key_value_heads"]
    return replace(_qwen2_5(config, names), num_kv_heads=0 if groups == config["num_heads"] else groups)


def _qwen3(config: Json, names: frozenset[str], *, deep: bool = True) -> ViTConfig:
    blocks = config["deepstack_visual_indexes"] if deep else ()
    blocks = tuple(i if 0 <= i < config["depth"] else -1 for i in blocks)
    return video_config(
        config,
        mlp=activation(config),
        position="learned",
        position_resize="zoom",
        deepstack=blocks,
        deepstack_merge=config["spatial_merge_size"] if blocks else 2,
        deepstack_dim=config["out_hidden_size"] if blocks else 0,
    )


def video_config_back(config: ViTConfig) -> Json:
    """The inverse of `video_config`."""
    return dict(
        patch_size=config.patch_size,
        hidden_size=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        in_channels=config.channels,
        temporal_patch_size=config.temporal_patch,
        rope_parameters=rope_back(config),
    )


def _qwen2_back(config: ViTConfig) -> Json:
    back = video_config_back(config) | dict(embed_dim=config.embed_dim, hidden_act=activation_back(config.mlp))
    del back["intermediate_size"], back["hidden_size"]
    if config.mlp_dim % config.embed_dim:
        raise ValueError(
            f"transformers needs an mlp_dim that embed_dim {config.embed_dim} divides, got {config.mlp_dim}"
        )
    return back | {"mlp_ratio": config.mlp_dim // config.embed_dim}


def _qwen2_5_back(config: ViTConfig) -> Json:
    if not config.window:
        raise ValueError("transformers cannot express a tower without windows here: set ViTConfig.window")
    return video_config_back(config) | dict(
        hidden_act=gated_back(config.mlp),
        window_size=config.window * config.patch_size,
        spatial_merge_size=next((side for side in range(2, config.window + 1) if config.window % side == 0), 1),
        fullatt_block_indexes=list(config.full_blocks),
    )


def _exaone_back(config: ViTConfig) -> Json:
    return _qwen2_5_back(config) | dict(num_key_value_heads=config.kv_heads)


def _qwen3_back(config: ViTConfig, *, deep: bool = True) -> Json:
    back = video_config_back(config) | dict(
        hidden_act=activation_back(config.mlp), num_position_embeddings=math.prod(config.grid)
    )
    if not deep:
        return back
    return back | dict(
        deepstack_visual_indexes=list(config.deepstack),
        spatial_merge_size=config.deepstack_merge,
        out_hidden_size=config.deepstack_dim or 3584,
    )


_GATED = dict(fc1=("mlp.gate_proj", "mlp.up_proj"), fc2="mlp.down_proj")
_QWEN3_NAMES = dict(fc1="mlp.linear_fc1", fc2="mlp.linear_fc2")


def patch_rows(config: ViTConfig, theirs: str = "patch_embed.proj") -> list[Key]:
    """The patch embedding, whose kernel spans frames there even if it spans one."""
    layout: TensorLayout | None = ONE_FRAME if config.temporal_patch == 1 else None
    rows = [key("patch_embed.weight", f"{theirs}.weight", layout=layout)]
    return rows + ([key("patch_embed.bias", f"{theirs}.bias")] if config.patch_bias else [])


def _keys(
    config: ViTConfig,
    style: Style = "hub",
    *,
    mergers: str = "deepstack_merger_list",
    merger: tuple[str, str, str] = ("norm", "linear_fc1", "linear_fc2"),
    **names: str | tuple[str, ...],
) -> list[Key]:
    rows = patch_rows(config) + replace(QWEN_BLOCKS, **names).rows(config)
    if config.position == "learned":
        rows.append(key("position.table", "pos_embed.weight", drop=1))
    for i in range(len(config.deepstack)):
        for ours, theirs in zip(("norm", "fc1", "fc2"), merger, strict=True):
            rows += layer(f"deepstack.{i}.{ours}", f"{mergers}.{i}.{theirs}")
    return rows


def processor(patch: int = 14, statistics: Mapping = OPENAI, least: int = 56 * 56, most: int = 28 * 28 * 1280) -> Json:
    """A preprocessor_config.json of Qwen's class."""
    return dict(
        image_processor_type="Qwen2VLImageProcessor",
        patch_size=patch,
        size={"shortest_edge": least, "longest_edge": most},
        **statistics,
    )


_DEFAULTS: Json = dict(
    depth=32, num_heads=16, in_channels=3, patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
)  # fmt: skip
_SHARED: Json = dict(
    landmarks=("patch_embed.proj.weight",),
    connector=("merger.",),
    resize={"transformers": "bicubic"},
    unresized=True,
)

QWEN2_VL = Family(
    name="qwen2_vl_vision",
    whole_models=(WholeModel(model_type="qwen2_vl"),),
    architecture="Qwen2VisionTransformerPretrainedModel",
    defaults=_DEFAULTS | dict(embed_dim=1280, mlp_ratio=4, hidden_act="quick_gelu"),
    read_config=_qwen2,
    write_config=_qwen2_back,
    keys=_keys,
    preprocessor=lambda config: processor(config.patch_size),
    image_processors={
        f"{name}ImageProcessor": OPENAI
        | dict(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, patch_size=14, merge_size=2, resample=3)
        for name in ("Qwen2VL", "CohereCompass")
    },
    **_SHARED,
)
"""Wang et al. 2024 (arXiv:2409.12191)."""

QWEN2_5_VL = Family(
    name="qwen2_5_vl_vision",
    whole_models=(
        WholeModel(model_type="qwen2_5_vl"),
        WholeModel(model_type="hyperclovax_vision_v2"),
    ),
    architecture="Qwen2_5_VisionTransformerPretrainedModel",
    defaults=_DEFAULTS
    | dict(
        hidden_size=3584,
        intermediate_size=3420,
        hidden_act="silu",
        window_size=112,
        fullatt_block_indexes=[7, 15, 23, 31],
    ),
    read_config=_qwen2_5,
    write_config=_qwen2_5_back,
    keys=partial(_keys, **_GATED),
    preprocessor=lambda config: processor(config.patch_size),
    **_SHARED,
)
"""Bai et al. 2025 (arXiv:2502.13923): attention in windows of 112 pixels."""

QWEN2_5_OMNI = replace(
    QWEN2_5_VL,
    name="qwen2_5_omni_vision_encoder",
    whole_models=(
        WholeModel(model_type="qwen2_5_omni_thinker"),
        WholeModel(model_type="qwen2_5_omni", around="thinker_config"),
    ),
    architecture="Qwen2_5OmniVisionEncoder",
    keys=partial(_keys, qkv=("attn.q", "attn.k", "attn.v"), **_GATED),
)
"""Xu et al. 2025 (arXiv:2503.20215): Qwen2.5-VL's, with queries, keys and values as three matrices."""

EXAONE4_5 = replace(
    QWEN2_5_VL,
    name="exaone4_5_vision",
    whole_models=(WholeModel(model_type="exaone4_5"),),
    architecture="Exaone4_5_VisionModel",
    defaults=QWEN2_5_VL.defaults | dict(num_key_value_heads=8),
    read_config=_exaone,
    write_config=_exaone_back,
)
"""Qwen2.5-VL's with fewer key and value heads."""

_WITH_TABLE: Json = _SHARED | dict(resize={"transformers": "zoom"}, unresized=False)
_QWEN3: Json = _DEFAULTS | dict(
    depth=27, hidden_size=1152, hidden_act="gelu_pytorch_tanh", intermediate_size=4304, patch_size=16,
    num_position_embeddings=2304,
    out_hidden_size=3584,
)  # fmt: skip

QWEN3_VL = Family(
    name="qwen3_vl_vision",
    whole_models=(
        WholeModel(model_type="qwen3_vl"),
        WholeModel(model_type="qwen3_vl_moe", tower="qwen3_vl_moe_vision"),
        WholeModel(model_type="cohere_compass", tower="cohere_compass_vision"),
        WholeModel(model_type="cosmos3_omni"),
    ),
    aliases={"qwen3_vl_moe_vision": {}, "cohere_compass_vision": {}},
    architecture="Qwen3VLVisionModel",
    defaults=_QWEN3 | dict(deepstack_visual_indexes=[8, 16, 24]),
    read_config=_qwen3,
    write_config=_qwen3_back,
    keys=partial(_keys, **_QWEN3_NAMES),
    preprocessor=lambda config: processor(16, HALF, 256 * 256, 4096 * 4096),
    **_WITH_TABLE,
)
"""Bai et al. 2025 (arXiv:2511.21631): learned and rotary positions, deep features (DeepStack)."""

QWEN3_OMNI = replace(
    QWEN3_VL,
    name="qwen3_omni_moe_vision_encoder",
    whole_models=(
        WholeModel(model_type="qwen3_omni_moe_thinker"),
        WholeModel(model_type="qwen3_omni_moe", around="thinker_config"),
    ),
    aliases={},
    architecture="Qwen3OmniMoeVisionEncoder",
    keys=partial(_keys, mergers="merger_list", merger=("ln_q", "mlp.0", "mlp.2"), **_QWEN3_NAMES),
)
"""Xu et al. 2025 (arXiv:2509.17765): Qwen3-VL's under other names."""

QWEN3_5 = Family(
    name="qwen3_5_vision",
    whole_models=(
        WholeModel(model_type="qwen3_5"),
        WholeModel(model_type="qwen3_5_moe", tower="qwen3_5_moe_vision"),
        WholeModel(model_type="qwen4_exp", tower="qwen4_exp_vision"),
    ),
    aliases={"qwen3_5_moe_vision": {}, "qwen4_exp_vision": {}},
    architecture="Qwen3_5VisionModel",
    defaults=_QWEN3,
    read_config=partial(_qwen3, deep=False),
    write_config=partial(_qwen3_back, deep=False),
    keys=partial(_keys, **_QWEN3_NAMES),
    preprocessor=lambda config: processor(16, HALF, 256 * 256, 4096 * 4096),
    **_WITH_TABLE,
)
"""Qwen3-VL without deep features."""
