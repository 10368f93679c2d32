"""The towers of HunYuan-VL and HY-V4-VL: a table of positions with a row for a class token that is not there."""

from dataclasses import replace
from functools import partial
from typing import Literal

import torch

from vlm_vision.checkpoints.families.blocks import SIGLIP_BLOCKS
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import OPENAI, activation, activation_back, common, common_back
from vlm_vision.checkpoints.keys import Key, TensorLayout, key, layer
from vlm_vision.nn.config import ViTConfig

_AFTER_FIRST = TensorLayout(
    write=lambda x: torch.cat([torch.zeros_like(x[0, :1]), x[0]]),
    read=lambda x, shape: x[1:].unsqueeze(0),
)
"""Our table (1, N, D) below a row that nothing reads, (1 + N, D)."""

_BLOCKS = replace(SIGLIP_BLOCKS, stem="layers.{}", proj="self_attn.o_proj")


def _config(
    config: Json, names: frozenset[str], *, rules: dict[str, str], frames: Literal["none", "apart"]
) -> ViTConfig:
    mode = config["interpolate_mode"]
    if mode not in rules:
        raise ValueError(f"interpolate_mode is {mode!r}: expected one of {', '.join(rules)}")
    heads, width, head_dim = config["num_attention_heads"], config["hidden_size"], config.get("head_dim") or 0
    fields = {"image_size": config["max_image_size"], "layer_norm_eps": config["rms_norm_eps"]}
    return ViTConfig(
        **common(config | fields),
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        class_token=False,
        position_resize=rules[mode],
        head_width=0 if head_dim * heads == width else head_dim,
        frames=frames,
        final_norm=False,
        pool="none",
    )


def _config_back(config: ViTConfig, *, rules: dict[str, str]) -> Json:
    modes = {rule: mode for mode, rule in rules.items()}
    if config.position_resize not in modes:
        raise ValueError(
            f"transformers cannot express position_resize {config.position_resize!r} here: choose one of {', '.join(modes)}"
        )
    back = common_back(config) | dict(
        max_image_size=config.image_size[0],
        rms_norm_eps=config.norm_eps,
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        interpolate_mode=modes[config.position_resize],
    )
    del back["image_size"], back["layer_norm_eps"]
    return back | ({"head_dim": config.head_dim} if config.head_width else {})


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    return [
        key("position.table", "embeddings.position_embedding.weight", layout=_AFTER_FIRST),
        *layer("patch_embed", "embeddings.patch_embedding"),
        *_BLOCKS.rows(config),
    ]


_TENCENT = (
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.fc1."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.fc2."),
    (r"^(layers\.\d+)\.input_layernorm\.", r"\1.layer_norm1."),
    (r"^(layers\.\d+)\.post_attention_layernorm\.", r"\1.layer_norm2."),
)
"""Names of Tencent's own files, and transformers'."""


_RULES = {"bilinear": "bilinear", "bicubic": "bicubic"}
_MOVED = {"bilinear": "bilinear_offset", "bicubic": "bicubic_offset_always"}
_DEFAULTS: Json = dict(
    hidden_act="gelu",
    hidden_size=1152,
    intermediate_size=4304,
    interpolate_mode="bilinear",
    rms_norm_eps=1e-5,
    num_attention_heads=16,
    num_channels=3,
    num_hidden_layers=27,
    patch_size=16,
    spatial_merge_size=2,
    max_image_size=2048,
)

_PROCESSOR: Json = OPENAI | dict(
    size={"shortest_edge": 512 * 512, "longest_edge": 2048 * 2048},
    patch_size=16,
    merge_size=2,
    temporal_patch_size=1,
    resample=3,
)

HUNYUAN_VL = Family(
    name="hunyuan_vl_vision",
    whole_models=(WholeModel(model_type="hunyuan_vl"),),
    connector=("patch_merger.", "perceive."),
    architecture="HunYuanVLVisionTransformer",
    landmarks=("embeddings.patch_embedding.weight",),
    spellings=_TENCENT,
    defaults=_DEFAULTS,
    read_config=partial(_config, rules=_RULES, frames="none"),
    write_config=partial(_config_back, rules=_RULES),
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="HunYuanVLImageProcessor", patch_size=config.patch_size),
    image_processors={"HunYuanVLImageProcessor": _PROCESSOR},
    resize={"transformers": "bilinear"},
)

HY_V4_VL = replace(
    HUNYUAN_VL,
    name="hy_v4_vl_vision",
    whole_models=(WholeModel(model_type="hy_v4_vl"),),
    architecture="HYV4VLVisionModel",
    defaults=_DEFAULTS | dict(hidden_size=1536, intermediate_size=6144, num_hidden_layers=40),
    preprocessor=lambda config: dict(image_processor_type="HYV4VLImageProcessor", patch_size=config.patch_size),
    image_processors={"HYV4VLImageProcessor": _PROCESSOR},
    read_config=partial(_config, rules=_MOVED, frames="apart"),
    write_config=partial(_config_back, rules=_MOVED),
    resize={"transformers": "bilinear_offset"},
)
"""HunYuan-VL's for videos too, each frame on its own, whose positions are resized by a scale that is 0.1 patches too large."""
