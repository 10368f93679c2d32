"""The tower of SAM 3: padded windows with rotary positions, a small table of positions tiled over the image."""

from dataclasses import replace

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import (
    HALF,
    activation,
    activation_back,
    common,
    common_back,
    pair,
    side,
    square,
)
from vlm_vision.checkpoints.families.rotary import channel_order, rope_theta
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope

BLOCKS = BlockNames(
    stem="layers.{}",
    norm1="layer_norm1",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    proj="attention.o_proj",
    norm2="layer_norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    shared, window = common(config), config["window_size"]
    for name in ("image_size", "pretrain_image_size"):
        if len(set(pair(config[name]))) > 1:
            raise ValueError(
                f"{name} is {config[name]}: expected a square, the only shape whose positions SAM 3 has right"
            )
    table = tuple(side // shared["patch_size"] for side in pair(config["pretrain_image_size"]))
    whole = tuple(side // shared["patch_size"] for side in shared["image_size"])
    full = config.get("global_attn_indexes")
    return ViTConfig(
        **shared,
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        class_token=False,
        patch_bias=False,
        position_grid=(0, 0) if table == whole else table,
        position_resize="tile",
        rope=Rope(base=rope_theta(config), span=window) if window else None,
        pre_norm=True,
        window=window,
        full_blocks=tuple(
            i for i in range(config["num_hidden_layers"]) if i in ((7, 15, 23, 31) if full is None else full)
        ),
        window_padding=True,
        layer_scale=None,
        final_norm=False,
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    theta = config.rope.base if config.rope else 10000.0
    return common_back(config) | dict(
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        pretrain_image_size=side((config.table_grid[0] * config.patch_size, config.table_grid[1] * config.patch_size)),
        window_size=config.window,
        global_attn_indexes=list(config.full_blocks),
        rope_parameters={"rope_type": "axial", "rope_theta": theta},
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    order = channel_order(config.head_dim, axes="columns first", channels="neighbors")
    return [
        *layer("patch_embed", "embeddings.patch_embeddings.projection", bias=False),
        key("position.table", "embeddings.position_embeddings"),
        *layer("pre_norm", "layer_norm"),
        *BLOCKS.rows(config, order=order),
    ]


_AROUND = WholeModel(model_type="", around="vision_config", part="backbone_config", tower="sam3_vit_model")

SAM3 = Family(
    name="sam3_vit_model",
    whole_models=(
        *(
            replace(_AROUND, model_type=name)
            for name in ("sam3", "sam3_lite_text", "sam3_tracker")
        ),
        replace(_AROUND, model_type="sam3_tracker_video", outer_fields={"image_size": 1008}),
        replace(_AROUND, model_type="sam3_video", around="detector_config.vision_config"),
        WholeModel(model_type="sam3_vision_model", part="backbone_config", tower="sam3_vit_model"),
    ),
    architecture="Sam3ViTModel",
    landmarks=("embeddings.patch_embeddings.projection.weight",),
    defaults=dict(
        hidden_size=1024, intermediate_size=4736, num_hidden_layers=32, num_attention_heads=16, num_channels=3,
        image_size=1008, patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6, window_size=24, pretrain_image_size=336,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="Sam3ImageProcessor", size=square(config)),
    image_processors={
        "Sam3ImageProcessor": HALF | dict(size={"height": 1008, "width": 1008}, resample=2, kernel="torch")
    },
    resize={"transformers": "tile"},
)  # fmt: skip
"""Carion et al. 2025 (arXiv:2511.16719). The neck of feature maps that follows is not of the tower."""
