"""The towers of Pix2Struct and Kosmos-2.5: patches of any grid, tables for rows and columns, gated MLPs, no biases."""

import math
from dataclasses import replace
from functools import partial

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import gated, gated_back
from vlm_vision.checkpoints.families.vlm.qwen import NATIVE
from vlm_vision.checkpoints.keys import PATCH_VECTOR, Key, key
from vlm_vision.nn.config import ViTConfig

CHANNELS = 3

BLOCKS = BlockNames(
    stem="encoder.layer.{}",
    norm1="pre_attention_layer_norm",
    qkv=("attention.query", "attention.key", "attention.value"),
    proj="attention.output",
    norm2="pre_mlp_layer_norm",
    fc1=("mlp.wi_0", "mlp.wi_1"),
    fc2="mlp.wo",
)


def _config(config: Json, names: frozenset[str], *, mlp: str, head: str, rows: str, scale: float | None) -> ViTConfig:
    pixels = config["patch_embed_hidden_size"]
    patch = math.isqrt(pixels // CHANNELS)
    if patch * patch * CHANNELS != pixels:
        raise ValueError(f"patch_embed_hidden_size is {pixels}: expected {CHANNELS} times the square of a whole number")
    usual = config["hidden_size"] == config[head] * config["num_attention_heads"]
    return ViTConfig(
        image_size=(NATIVE * patch, NATIVE * patch),
        patch_size=patch,
        remainder="error",
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        head_width=0 if usual else config[head],
        mlp_dim=config[mlp],
        mlp=gated(config, "dense_act_fn"),
        class_token=False,
        position="axes",
        axis_length=config[rows],
        axis_first=1,
        qkv_bias=False,
        proj_bias=False,
        mlp_bias=False,
        norm="rms",
        norm_eps=float(config["layer_norm_eps"]),
        attention_scale=scale,
        pool="none",
    )


def _config_back(config: ViTConfig, *, mlp: str, head: str, rows: str) -> Json:
    return {
        "patch_embed_hidden_size": CHANNELS * config.patch_size**2,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "dense_act_fn": gated_back(config.mlp),
        "layer_norm_eps": config.norm_eps,
        mlp: config.mlp_dim,
        head: config.head_dim,
        rows: config.axis_length,
    }


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    return [
        key("patch_embed.weight", "embeddings.patch_projection.weight", layout=PATCH_VECTOR),
        key("patch_embed.bias", "embeddings.patch_projection.bias"),
        key("position.rows", "embeddings.row_embedder.weight"),
        key("position.columns", "embeddings.column_embedder.weight"),
        *BLOCKS.rows(config),
        key("norm.weight", "layernorm.weight"),
    ]


_DEFAULTS: Json = dict(patch_embed_hidden_size=768, dense_act_fn="gelu_new", layer_norm_eps=1e-6)
_PLAIN: Json = dict(image_mean=[0.0] * 3, image_std=[1.0] * 3)
"""These classes know no mean but the image's own."""
_NAMES: Json = dict(mlp="d_ff", head="d_kv", rows="seq_len")

PIX2STRUCT = Family(
    name="pix2struct_vision_model",
    whole_models=(WholeModel(model_type="pix2struct", tower="pix2struct_vision_model"),),
    architecture="Pix2StructVisionModel",
    landmarks=("embeddings.patch_projection.weight",),
    defaults=_DEFAULTS
    | dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, d_ff=2048, d_kv=64, seq_len=4096),
    read_config=partial(_config, **_NAMES, scale=1.0),
    write_config=partial(_config_back, **_NAMES),
    keys=_keys,
    preprocessor=lambda config: dict(
        image_processor_type="Pix2StructImageProcessor",
        patch_size={"height": config.patch_size, "width": config.patch_size},
    ),
    image_processors={
        "Pix2StructImageProcessor": _PLAIN | dict(patch_size=16, max_patches=2048, resample=2, kernel="float"),
        "Kosmos2_5ImageProcessor": _PLAIN | dict(patch_size=16, max_patches=4096, resample=2, kernel="float"),
    },
    resize={"transformers": "bicubic"},
    unresized=True,
)
"""Lee et al. 2022 (arXiv:2210.03347): attention logits without a scale."""

_NAMES_2_5: Json = dict(mlp="intermediate_size", head="head_dim", rows="max_num_patches")

KOSMOS_2_5 = replace(
    PIX2STRUCT,
    name="kosmos_2_5_vision_model",
    whole_models=(WholeModel(model_type="kosmos-2.5", tower="kosmos_2_5_vision_model"),),
    architecture="Kosmos2_5VisionModel",
    defaults=_DEFAULTS
    | dict(
        hidden_size=1536,
        num_hidden_layers=18,
        num_attention_heads=24,
        intermediate_size=3968,
        head_dim=64,
        max_num_patches=4096,
    ),
    read_config=partial(_config, **_NAMES_2_5, scale=None),
    write_config=partial(_config_back, **_NAMES_2_5),
    preprocessor=lambda config: dict(
        image_processor_type="Kosmos2_5ImageProcessor",
        patch_size={"height": config.patch_size, "width": config.patch_size},
    ),
    image_processors={},
)
"""Lv et al. 2023 (arXiv:2309.11419)."""
