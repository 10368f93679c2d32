"""The tower of Inkling 2: learned and rotary positions at native resolution, one class token for each image."""

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import HALF, activation, activation_back, common, common_back
from vlm_vision.checkpoints.families.rotary import channel_order, rope_back, rope_theta
from vlm_vision.checkpoints.keys import PATCH_VECTOR, Key, key, layer
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    patch = config.get("native_patch_size", config["patch_size"])
    side = config["posemb_grid_size"] * patch
    return ViTConfig(
        **common(config | {"patch_size": patch, "image_size": side}),
        mlp_dim=config.get("intermediate_size") or int(config["hidden_size"] * config["mlp_ratio"]),
        mlp=activation(config),
        position_prefix=1,
        position_resize="bilinear",
        rope=Rope(base=rope_theta(config), first=1),
        remainder="error",
        patch_bias=False,
        pre_norm=True,
        layer_scale=float(config["layer_scale_init_value"]),
        final_norm=False,
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    back = common_back(config)
    del back["image_size"]
    return back | dict(
        posemb_grid_size=config.grid[0],
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        layer_scale_init_value=config.layer_scale,
        rope_parameters=rope_back(config),
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    names = BlockNames(
        stem="layers.{}",
        norm1="layernorm_before",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        proj="self_attn.out_proj",
        norm2="layernorm_after",
        fc1="mlp.fc1",
        fc2="mlp.fc2",
        scale1="lambda_1",
        scale2="lambda_2",
    )
    table = ("embeddings.cls_position_embedding", "embeddings.position_embedding.weight")
    return [
        key("patch_embed.weight", "embeddings.patch_embedding.weight", layout=PATCH_VECTOR),
        key("cls_token", "embeddings.class_embedding", drop=2),
        key("position.table", table, drop=1, sizes=(0, config.grid[0] * config.grid[1])),
        *layer("pre_norm", "pre_layernorm"),
        *names.rows(config, order=channel_order(config.head_dim, axes="columns first", channels="neighbors")),
    ]


_HUB = (
    (r"^backbone\.", ""),
    (r"^embeddings\.position_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "pre_layernorm."),
    (r"^proj_in\.", "merger.linear_1."),
    (r"^proj_out\.", "merger.linear_2."),
    (r"\.ls_(\d)\.gamma$", r".lambda_\1"),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.ln_1\.", ".layernorm_before."),
    (r"\.ln_2\.", ".layernorm_after."),
)
"""Names of the public files, and transformers'."""


INKLING2 = Family(
    name="inkling2_vision",
    whole_models=tuple(
        WholeModel(model_type=model_type, tower="inkling2_vision") for model_type in ("inkling2", "inkling2_loop")
    ),
    architecture="Inkling2VisionModel",
    landmarks=("embeddings.cls_position_embedding",),
    connector=("merger.",),
    spellings=_HUB,
    defaults=dict(
        num_channels=3,
        hidden_size=1024,
        num_hidden_layers=23,
        num_attention_heads=16,
        patch_size=20,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        mlp_ratio=4.0,
        layer_scale_init_value=0.1,
        posemb_grid_size=32,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(
        image_processor_type="Inkling2ImageProcessor",
        size={"height": 2 * config.patch_size, "width": 2 * config.patch_size},
    ),
    image_processors={
        "Inkling2ImageProcessor": HALF | dict(size={"height": 40, "width": 40}, resample=3),
    },
    resize={"transformers": "bilinear"},
)
"""Thinking Machines 2026."""
