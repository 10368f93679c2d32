"""Molmo2's tower: SigLIP's blocks on patch vectors, positions of one size, no final norm."""

import re
from dataclasses import replace

from vlm_vision.checkpoints.families.blocks import SIGLIP_BLOCKS
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import HALF, activation, activation_back, common, common_back, square
from vlm_vision.checkpoints.keys import PATCH_VECTOR, Key, key
from vlm_vision.nn.config import ViTConfig


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    fields = {"image_size": config.get("image_default_input_size", config["image_size"])}
    fields |= {"patch_size": config.get("image_patch_size", config["patch_size"])}
    vit = ViTConfig(
        **common(config | fields),
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        head_width=config["head_dim"],
        num_kv_heads=config["num_key_value_heads"],
        qkv_bias=config["attention_bias"],
        proj_bias=config["attention_bias"],
        class_token=False,
        position_resize="native",
        final_norm=False,
        pool="none",
    )
    stored = {int(found[1]) for name in names if (found := re.match(r"layers\.(\d+)\.", name))}
    if "image_default_input_size" in config and stored:  # the public config.json counts blocks that its weights lack
        vit = replace(vit, depth=min(vit.depth, len(stored)))
    rows = config.get("image_num_pos") or config.get("num_position_embeddings")
    if rows not in (None, vit.grid[0] * vit.grid[1]):
        raise ValueError(
            f"num_position_embeddings is {rows}: expected one for each of {vit.grid[0]}x{vit.grid[1]} patches"
        )
    return vit


def _config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        image_size=list(config.image_size),
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        head_dim=config.head_dim,
        num_key_value_heads=config.kv_heads,
        attention_bias=config.qkv_bias,
        num_position_embeddings=config.grid[0] * config.grid[1],
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    return [
        key("position.table", "positional_embedding", drop=1),
        key("patch_embed.weight", "patch_embedding.weight", layout=PATCH_VECTOR),
        key("patch_embed.bias", "patch_embedding.bias"),
        *replace(SIGLIP_BLOCKS, stem="layers.{}", proj="self_attn.o_proj").rows(config),
    ]


_AI2 = (
    (r"^transformer\.resblocks\.", "layers."),
    (r"\.attention\.w([qkv])\.", r".self_attn.\1_proj."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w([12])\.", r".mlp.fc\1."),
    (r"\.attention_norm\.", ".layer_norm1."),
    (r"\.ffn_norm\.", ".layer_norm2."),
)
"""Names of Ai2's own files, and transformers'."""


MOLMO2 = Family(
    name="molmo2_vision",
    whole_models=(WholeModel(model_type="molmo2", older_part="vit_config"),),
    architecture="Molmo2VisionModel",
    landmarks=("patch_embedding.weight",),
    spellings=_AI2,
    defaults=dict(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=25,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=72,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        image_size=[378, 378],
        patch_size=14,
        num_channels=3,
        attention_bias=True,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="Molmo2ImageProcessor", size=square(config)),
    image_processors={"Molmo2ImageProcessor": HALF | dict(size=[378, 378], resample=2, kernel="point_rounded")},
    resize={"transformers": "native"},
)
"""Clark et al. 2026 (arXiv:2601.10611)."""
