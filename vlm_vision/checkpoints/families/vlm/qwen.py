"""The towers of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: rotary positions, two frames a patch, native resolution."""

import math
from collections.abc import Mapping
from functools import partial

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import HALF, OPENAI, activation, activation_back
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope

NATIVE = 32
"""Sides, in patches, of the native size of towers without a table of positions: they take any."""


def video_config(config: Json, **facts) -> ViTConfig:
    """The fields that towers of native resolution share, under Qwen's names."""
    patch = config["patch_size"]
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


def rope_theta(config: Json, default: float = 10000.0) -> float:
    """Base of the rotary positions."""
    return float((config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta") or default)


def _qwen2(config: Json, names: frozenset[str]) -> ViTConfig:
    width = config["embed_dim"]
    config = config | {"hidden_size": width, "intermediate_size": int(width * config["mlp_ratio"])}
    return video_config(config, mlp=activation(config), patch_bias=False)


def _qwen2_5(config: Json, names: frozenset[str]) -> ViTConfig:
    merge, patch = config["spatial_merge_size"], config["patch_size"]
    return video_config(
        config,
        mlp=gated(config),
        norm="rms",
        patch_bias=False,
        window=config["window_size"] // merge // patch * merge,
        full_blocks=tuple(i for i in config["fullatt_block_indexes"] if i < config["depth"]),
    )


def _qwen3(config: Json, names: frozenset[str]) -> ViTConfig:
    deep = tuple(config.get("deepstack_visual_indexes") or ())
    return video_config(
        config,
        mlp=activation(config),
        position="learned",
        position_resize="zoom",
        deepstack=deep,
        deepstack_merge=config["spatial_merge_size"],
        deepstack_dim=config["out_hidden_size"] if deep else 0,
    )


def gated(config: Json) -> str:
    """Our gated MLP for their hidden_act."""
    names = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "gelu_new": "geglu_tanh"}
    if config["hidden_act"] not in names:
        raise ValueError(f"hidden_act is {config['hidden_act']!r} in a gated MLP: expected one of {', '.join(names)}")
    return names[config["hidden_act"]]


def gated_back(mlp: str) -> str:
    """The inverse of `gated`."""
    return {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh"}[mlp]


def video_config_back(config: ViTConfig) -> Json:
    """The inverse of `video_config`."""
    assert config.rope is not None
    return dict(
        patch_size=config.patch_size,
        hidden_size=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        in_channels=config.channels,
        temporal_patch_size=config.temporal_patch,
        rope_parameters={"rope_type": "axial", "rope_theta": config.rope.base},
    )


def _qwen2_back(config: ViTConfig) -> Json:
    back = video_config_back(config) | dict(embed_dim=config.embed_dim, hidden_act=activation_back(config.mlp))
    del back["intermediate_size"], back["hidden_size"]
    return back | {"mlp_ratio": config.mlp_dim // config.embed_dim}


def _qwen2_5_back(config: ViTConfig) -> Json:
    return video_config_back(config) | dict(
        hidden_act=gated_back(config.mlp),
        window_size=config.window * config.patch_size,
        fullatt_block_indexes=list(config.full_blocks),
    )


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


BLOCKS = BlockNames(
    stem="blocks.{}", norm1="norm1", qkv="attn.qkv", proj="attn.proj", norm2="norm2", fc1="mlp.fc1", fc2="mlp.fc2"
)
"""Names of Qwen2-VL."""


def _keys(config: ViTConfig, style: Style = "hub", *, fc1: str | tuple[str, str], fc2: str) -> list[Key]:
    names = BlockNames(**vars(BLOCKS) | dict(fc1=fc1, fc2=fc2))
    rows = layer("patch_embed", "patch_embed.proj", bias=config.patch_bias) + names.rows(config)
    if config.position == "learned":
        rows.append(key("position.table", "pos_embed.weight", drop=1))
    for i in range(len(config.deepstack)):
        ours, theirs = f"deepstack.{i}", f"deepstack_merger_list.{i}"
        rows += layer(f"{ours}.norm", f"{theirs}.norm")
        rows += layer(f"{ours}.fc1", f"{theirs}.linear_fc1") + layer(f"{ours}.fc2", f"{theirs}.linear_fc2")
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
    rotary=True,
)

QWEN2_VL = Family(
    name="qwen2_vl_vision",
    whole_models=(WholeModel(model_type="qwen2_vl", tower="qwen2_vl_vision"),),
    architecture="Qwen2VisionTransformerPretrainedModel",
    defaults=_DEFAULTS | dict(embed_dim=1280, mlp_ratio=4, hidden_act="quick_gelu"),
    read_config=_qwen2,
    write_config=_qwen2_back,
    keys=partial(_keys, fc1="mlp.fc1", fc2="mlp.fc2"),
    preprocessor=lambda config: processor(config.patch_size),
    image_processors={
        "Qwen2VLImageProcessor": OPENAI
        | dict(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, patch_size=14, merge_size=2, resample=3)
    },
    **_SHARED,
)
"""Wang et al. 2024 (arXiv:2409.12191)."""

QWEN2_5_VL = Family(
    name="qwen2_5_vl_vision",
    whole_models=(WholeModel(model_type="qwen2_5_vl", tower="qwen2_5_vl_vision"),),
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
    keys=partial(_keys, fc1=("mlp.gate_proj", "mlp.up_proj"), fc2="mlp.down_proj"),
    preprocessor=lambda config: processor(config.patch_size),
    **_SHARED,
)
"""Bai et al. 2025 (arXiv:2502.13923): attention in windows of 112 pixels."""

_QWEN3: Json = _DEFAULTS | dict(
    depth=27, hidden_size=1152, hidden_act="gelu_pytorch_tanh", intermediate_size=4304, patch_size=16,
    num_position_embeddings=2304,
    out_hidden_size=3584,
)  # fmt: skip

QWEN3_VL = Family(
    name="qwen3_vl_vision",
    whole_models=(
        WholeModel(model_type="qwen3_vl", tower="qwen3_vl_vision"),
        WholeModel(model_type="qwen3_vl_moe", tower="qwen3_vl_moe_vision"),
    ),
    aliases={"qwen3_vl_moe_vision": {}},
    architecture="Qwen3VLVisionModel",
    defaults=_QWEN3 | dict(deepstack_visual_indexes=[8, 16, 24]),
    read_config=_qwen3,
    write_config=_qwen3_back,
    keys=partial(_keys, fc1="mlp.linear_fc1", fc2="mlp.linear_fc2"),
    preprocessor=lambda config: processor(16, HALF, 256 * 256, 4096 * 4096),
    **_SHARED | dict(resize={"transformers": "zoom"}, rotary=False),
)
"""Bai et al. 2025 (arXiv:2511.21631): learned and rotary positions, deep features (DeepStack)."""

QWEN3_5 = Family(
    name="qwen3_5_vision",
    whole_models=(
        WholeModel(model_type="qwen3_5", tower="qwen3_5_vision"),
        WholeModel(model_type="qwen3_5_moe", tower="qwen3_5_moe_vision"),
    ),
    aliases={"qwen3_5_moe_vision": {}},
    architecture="Qwen3_5VisionModel",
    defaults=_QWEN3,
    read_config=_qwen3,
    write_config=partial(_qwen3_back, deep=False),
    keys=partial(_keys, fc1="mlp.linear_fc1", fc2="mlp.linear_fc2"),
    preprocessor=lambda config: processor(16, HALF, 256 * 256, 4096 * 4096),
    **_SHARED | dict(resize={"transformers": "zoom"}, rotary=False),
)
"""Qwen3-VL without deep features."""
