"""BLIP, BLIP-2 and InstructBLIP: one matrix for queries, keys and values, and a class token that is normed twice."""

from dataclasses import replace

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import (
    BASE,
    OPENAI,
    activation,
    activation_back,
    common,
    common_back,
    square,
)
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig

BLOCKS = BlockNames(
    stem="encoder.layers.{}",
    norm1="layer_norm1",
    qkv="self_attn.qkv",
    proj="self_attn.projection",
    norm2="layer_norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    projection = "visual_projection.weight" in names
    return ViTConfig(
        **common(config | {"num_channels": 3}),
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        position_prefix=1,
        qkv_bias=config.get("qkv_bias", True),
        pool_norm=True,
        pool_head="linear" if projection else "none",
        pool_dim=config["projection_dim"] if projection else 0,
    )


def _config_back(config: ViTConfig) -> Json:
    back = common_back(config) | dict(
        intermediate_size=config.mlp_dim, hidden_act=activation_back(config.mlp), qkv_bias=config.qkv_bias
    )
    del back["num_channels"]
    return back | ({"projection_dim": config.pool_dim} if config.pool_head == "linear" else {})


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    projection = [key("pool_head.weight", "visual_projection.weight")] if config.pool_head == "linear" else []
    return projection + [
        key("cls_token", "embeddings.class_embedding"),
        key("position.table", "embeddings.position_embedding"),
        *layer("patch_embed", "embeddings.patch_embedding"),
        *layer("norm", "post_layernorm"),
        *layer("pool_norm", "post_layernorm"),
        *BLOCKS.rows(config),
    ]


_PROCESSOR: Json = OPENAI | dict(size=[384, 384], resample=3)

BLIP = Family(
    name="blip_vision_model",
    whole_models=(WholeModel(model_type="blip", outer_fields={"projection_dim": 512}),),
    beside=("visual_projection.weight",),
    architecture="BlipVisionModel",
    landmarks=("embeddings.patch_embedding.weight",),
    defaults=BASE | dict(image_size=384, patch_size=16, intermediate_size=3072, hidden_act="gelu", layer_norm_eps=1e-5),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="BlipImageProcessor", size=square(config)),
    image_processors={"BlipImageProcessor": _PROCESSOR},
    resize={"transformers": "bicubic"},
)
"""Li et al. 2022 (arXiv:2201.12086)."""

BLIP2 = replace(
    BLIP,
    name="blip_2_vision_model",
    beside=(),
    aliases={"instructblip_vision_model": {}, "instructblipvideo_vision_model": {}},
    whole_models=(
        WholeModel(model_type="blip-2"),
        WholeModel(model_type="instructblip"),
        WholeModel(
            model_type="instructblipvideo", preprocessor={"image_processor_type": "InstructBlipVideoImageProcessor"}
        ),
    ),
    architecture="Blip2VisionModel",
    defaults=dict(
        hidden_size=1408,
        intermediate_size=6144,
        num_hidden_layers=39,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        qkv_bias=True,
    ),
    image_processors={"InstructBlipVideoImageProcessor": _PROCESSOR},
)
"""Li et al. 2023 (arXiv:2301.12597), Dai et al. 2023 (arXiv:2305.06500): the tower of EVA (arXiv:2211.07636)."""
