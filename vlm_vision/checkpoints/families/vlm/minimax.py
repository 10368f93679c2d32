"""The tower of MiniMax M3: rotary positions over frames, rows and columns, all frames of a clip in one sequence."""

from dataclasses import replace

from vlm_vision.checkpoints.families.blocks import SIGLIP_BLOCKS
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import BASE, OPENAI, activation, activation_back, common, common_back
from vlm_vision.checkpoints.families.rotary import leading_order, rope_back, rope_theta
from vlm_vision.checkpoints.keys import ONE_FRAME, Key, key, layer
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    return ViTConfig(
        **common(config),
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        class_token=False,
        temporal_patch=config["temporal_patch_size"],
        frames="joined",
        remainder="error",
        position="none",
        rope=Rope(base=rope_theta(config), axes=3),
        patch_bias=False,
        pre_norm=True,
        final_norm=False,
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        temporal_patch_size=config.temporal_patch,
        rope_parameters=rope_back(config),
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    assert config.rope is not None
    names = replace(SIGLIP_BLOCKS, stem="layers.{}")
    turned = 6 * config.rope.planes(config.head_dim)
    return [
        key("patch_embed.weight", "embeddings.proj.weight", layout=ONE_FRAME if config.temporal_patch == 1 else None),
        *layer("pre_norm", "pre_layrnorm"),
        *names.rows(config, order=leading_order(config.head_dim, turned)),
    ]


_HUB = ((r"^encoder\.", ""), (r"patch_embedding\.", "proj."))
"""Names of the public files, and transformers'."""


MINIMAX_M3 = Family(
    name="minimax_m3_vl_vision",
    whole_models=(WholeModel(model_type="minimax_m3_vl", tower="minimax_m3_vl_vision"),),
    architecture="MiniMaxM3VLVisionModel",
    landmarks=("embeddings.proj.weight", "embeddings.patch_embedding.weight"),
    spellings=_HUB,
    defaults=BASE
    | dict(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=2016,
        patch_size=14,
        temporal_patch_size=2,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="MiniMaxM3VLImageProcessor", patch_size=config.patch_size),
    image_processors={
        "MiniMaxM3VLImageProcessor": OPENAI
        | dict(
            size={"shortest_edge": 4 * 28 * 28, "longest_edge": 451584},
            patch_size=14,
            merge_size=2,
            resample=3,
            kernel="torch",
        ),
    },
    resize={"transformers": "bicubic"},
    unresized=True,
)
"""MiniMax 2026."""
