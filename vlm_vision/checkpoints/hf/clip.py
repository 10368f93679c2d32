"""CLIP, SigLIP, SigLIP2 NaFlex and Idefics3 / SmolVLM vision towers in HuggingFace folders: the `encoder.layers.i` layout."""

import math
from dataclasses import replace
from functools import partial

from vlm_vision.checkpoints.hf.family import (
    BASE,
    Family,
    Json,
    Style,
    activation,
    activation_back,
    common,
    common_back,
    num_labels,
    square,
)
from vlm_vision.checkpoints.keys import PATCH_VECTOR, Key, key, layer
from vlm_vision.nn.config import ViTConfig


def block_keys(depth: int) -> list[Key]:
    """Rows of the blocks of an image or text tower."""
    keys = []
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"encoder.layers.{i}"
        keys += [
            *layer(f"{ours}.norm1", f"{theirs}.layer_norm1"),
            *layer(f"{ours}.attn.qkv", tuple(f"{theirs}.self_attn.{part}_proj" for part in "qkv")),
            *layer(f"{ours}.attn.proj", f"{theirs}.self_attn.out_proj"),
            *layer(f"{ours}.norm2", f"{theirs}.layer_norm2"),
            *layer(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1"),
            *layer(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2"),
        ]
    return keys


def _clip_config(config: Json, names: frozenset[str]) -> ViTConfig:
    projection = "visual_projection.weight" in names
    return ViTConfig(
        **common(config),
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        position_prefix=1,
        pre_norm=True,
        patch_bias=False,
        pool_head="linear" if projection else "none",
        pool_dim=config["projection_dim"] if projection else 0,
    )


def _clip_config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        projection_dim=config.pool_dim or 512,
    )


def _clip_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    keys = [
        key("cls_token", "embeddings.class_embedding", drop=2),
        key("position.table", "embeddings.position_embedding.weight", drop=1),
        *layer("patch_embed", "embeddings.patch_embedding", bias=False),
        *layer("pre_norm", "pre_layrnorm"),  # the misspelling is theirs
        *layer("norm", "post_layernorm"),
    ]
    if config.pool_head == "linear":
        keys.append(key("pool_head.weight", "visual_projection.weight"))
    return keys + block_keys(config.depth)


def _siglip_config(config: Json, names: frozenset[str]) -> ViTConfig:
    return ViTConfig(
        **common(config),
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        class_token=False,
        pool="map" if config["vision_use_head"] else "none",
        num_classes=num_labels(config) if "classifier.weight" in names else 0,
        class_input="patch_mean",
    )


def _siglip_config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        intermediate_size=config.mlp_dim, hidden_act=activation_back(config.mlp), vision_use_head=config.pool == "map"
    )


def _siglip_keys(config: ViTConfig, style: Style = "hub", *, linear: bool = False) -> list[Key]:
    keys = [
        key("position.table", "embeddings.position_embedding.weight", drop=1),
        key("patch_embed.weight", "embeddings.patch_embedding.weight", layout=PATCH_VECTOR if linear else None),
        key("patch_embed.bias", "embeddings.patch_embedding.bias"),
        *layer("norm", "post_layernorm"),
    ]
    if config.pool == "map":
        keys += [
            key("pool.probe", "head.probe"),
            key(("pool.q.weight", "pool.kv.weight"), "head.attention.in_proj_weight"),
            key(("pool.q.bias", "pool.kv.bias"), "head.attention.in_proj_bias"),
            *layer("pool.proj", "head.attention.out_proj"),
            *layer("pool.norm", "head.layernorm"),
            *layer("pool.mlp.fc1", "head.mlp.fc1"),
            *layer("pool.mlp.fc2", "head.mlp.fc2"),
        ]
    if config.num_classes:
        keys += layer("head", "classifier")
    return keys + block_keys(config.depth)


def _siglip2_config(config: Json, names: frozenset[str]) -> ViTConfig:
    side = math.isqrt(config["num_patches"])
    if side * side != config["num_patches"]:
        raise ValueError(f"num_patches is {config['num_patches']}: expected the square of a whole number")
    config = config | {"image_size": side * config["patch_size"]}
    return replace(_siglip_config(config, names), position_resize="bilinear_antialias")


def _siglip2_config_back(config: ViTConfig) -> Json:
    rows, columns = config.grid
    if rows != columns:
        raise ValueError(f"siglip2 has square position tables only, got {rows}x{columns}")
    back = _siglip_config_back(config) | dict(num_patches=rows * columns)
    del back["image_size"]
    return back


def _idefics3_config(config: Json, names: frozenset[str]) -> ViTConfig:
    return replace(_siglip_config(config | {"vision_use_head": False}, names), position_resize="bucket")


def _idefics3_config_back(config: ViTConfig) -> Json:
    back = _siglip_config_back(config)
    del back["vision_use_head"]
    return back


_LANDMARK = "embeddings.patch_embedding.weight"

CLIP = Family(
    landmark=_LANDMARK,
    beside=("visual_projection.weight",),
    defaults=BASE
    | dict(patch_size=32, intermediate_size=3072, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=512),
    read_config=_clip_config,
    write_config=_clip_config_back,
    keys=_clip_keys,
    architecture="CLIPVisionModel",
    prefix="vision_model.",
    preprocessor=lambda config: dict(
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": min(config.image_size)},
        crop_size=square(config),
    ),
)

SIGLIP = Family(
    landmark=_LANDMARK,
    beside=("classifier.weight", "classifier.bias"),
    defaults=BASE
    | dict(
        patch_size=16,
        intermediate_size=3072,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        vision_use_head=True,
    ),
    read_config=_siglip_config,
    write_config=_siglip_config_back,
    keys=_siglip_keys,
    architecture="SiglipVisionModel",
    prefix="vision_model.",
    preprocessor=lambda config: dict(image_processor_type="SiglipImageProcessor", size=square(config)),
)

SIGLIP2 = replace(
    SIGLIP,
    defaults={name: value for name, value in SIGLIP.defaults.items() if name != "image_size"} | dict(num_patches=256),
    read_config=_siglip2_config,
    write_config=_siglip2_config_back,
    keys=partial(_siglip_keys, linear=True),
    architecture="Siglip2VisionModel",
    preprocessor=lambda config: dict(
        image_processor_type="Siglip2ImageProcessor",
        patch_size=config.patch_size,
        max_num_patches=math.prod(config.grid),
    ),
)

IDEFICS3 = replace(
    SIGLIP,
    beside=(),
    defaults=SIGLIP.defaults | dict(hidden_size=1152, num_attention_heads=16, patch_size=32),
    read_config=_idefics3_config,
    write_config=_idefics3_config_back,
    architecture="Idefics3VisionTransformer",
    prefix="",
)

SMOLVLM = replace(IDEFICS3, architecture="SmolVLMVisionTransformer")
