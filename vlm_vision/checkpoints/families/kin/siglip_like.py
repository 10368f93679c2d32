"""Towers that differ from SigLIP's in names, or in the resize of their positions: Janus, GLM-Image, Granite-Docling, Cosmos 3 Edge."""

from dataclasses import replace

from vlm_vision.checkpoints.families.blocks import QWEN_BLOCKS, SIGLIP_BLOCKS
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import (
    CENTRED,
    HALF,
    OPENAI,
    activation,
    activation_back,
    common,
    common_back,
    ratio,
    square,
)
from vlm_vision.checkpoints.families.siglip import DEFAULTS, SIGLIP, SIGLIP2
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig


def _janus_config(config: Json, names: frozenset[str]) -> ViTConfig:
    if config["use_qk_norm"]:
        raise ValueError("use_qk_norm is True: expected False, as transformers norms heads there by their total width")
    return ViTConfig(
        **common(config),
        mlp_dim=int(config["hidden_size"] * config["mlp_ratio"]),
        mlp=activation(config),
        class_token=False,
        qkv_bias=config["attention_bias"],
        pool="none",
    )


def _janus_config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        hidden_act=activation_back(config.mlp),
        mlp_ratio=ratio(config.mlp_dim, config.embed_dim),
        attention_bias=config.qkv_bias,
        use_qk_norm=False,
        num_image_tokens=config.grid[0] * config.grid[1],
    )


def _janus_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    return [
        key("position.table", "embeddings.position_embedding.weight", drop=1),
        *layer("patch_embed", "embeddings.patch_embedding"),
        *layer("norm", "post_layernorm"),
        *replace(SIGLIP_BLOCKS, proj="self_attn.projection_layer").rows(config),
    ]


JANUS = Family(
    name="janus_vision_model",
    whole_models=(WholeModel(model_type="janus"),),
    architecture="JanusVisionModel",
    landmarks=("embeddings.position_embedding.weight",),
    defaults=DEFAULTS
    | dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=384,
        hidden_act="gelu",
        mlp_ratio=4.0,
        attention_bias=True,
        use_qk_norm=False,
    ),
    read_config=_janus_config,
    write_config=_janus_config_back,
    keys=_janus_keys,
    preprocessor=lambda config: dict(image_processor_type="JanusImageProcessor", size=square(config)),
    image_processors={"JanusImageProcessor": CENTRED},
    resize={"transformers": "bicubic"},
)
"""Chen et al. 2025 (arXiv:2501.17811)."""


def _glm_image_config(config: Json, names: frozenset[str]) -> ViTConfig:
    fields = {"num_hidden_layers": config["depth"], "num_attention_heads": config["num_heads"]}
    return ViTConfig(
        **common(config | fields | {"num_channels": config["in_channels"]}),
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        class_token=False,
        position_resize="bilinear",
        qkv_bias=config["attention_bias"],
        proj_bias=config["attention_bias"],
        final_norm=False,
        pool="none",
    )


def _glm_image_config_back(config: ViTConfig) -> Json:
    theirs = {"num_hidden_layers": "depth", "num_attention_heads": "num_heads", "num_channels": "in_channels"}
    back = {theirs.get(name, name): value for name, value in common_back(config).items()}
    return back | dict(
        intermediate_size=config.mlp_dim, hidden_act=activation_back(config.mlp), attention_bias=config.qkv_bias
    )


def _glm_image_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    return [
        key("position.table", "embeddings.position_embedding.weight", drop=1),
        *layer("patch_embed", "patch_embed.proj"),
        *QWEN_BLOCKS.rows(config),
    ]


GLM_IMAGE = Family(
    name="glm_image_vision",
    whole_models=(WholeModel(model_type="glm_image"),),
    architecture="GlmImageVisionModel",
    landmarks=("patch_embed.proj.weight",),
    defaults=dict(
        depth=40,
        hidden_size=1536,
        hidden_act="gelu",
        attention_bias=True,
        num_heads=16,
        in_channels=3,
        image_size=2048,
        patch_size=16,
        intermediate_size=6144,
        layer_norm_eps=1e-6,
    ),
    read_config=_glm_image_config,
    write_config=_glm_image_config_back,
    keys=_glm_image_keys,
    preprocessor=lambda config: dict(
        image_processor_type="GlmImageImageProcessor", patch_size=config.patch_size, merge_size=1
    ),
    image_processors={
        "GlmImageImageProcessor": OPENAI
        | dict(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, resample=3)
        | dict(patch_size=14, merge_size=2, temporal_patch_size=2)
    },
    resize={"transformers": "bilinear"},
)
"""The tower of GLM-Image, whose positions are read bilinearly."""

GRANITE_DOCLING = replace(
    SIGLIP,
    name="granite_docling_vision",
    whole_models=(WholeModel(model_type="granite_docling"),),
    connector=("connector.",),
    architecture="GraniteDoclingVisionModel",
    classifier="",
    beside=(),
    prefix="",
    defaults=DEFAULTS | dict(image_size=512),
    read_config=lambda config, names: SIGLIP.read_config(config | {"vision_use_head": False}, names),
    write_config=lambda config: {k: v for k, v in SIGLIP.write_config(config).items() if k != "vision_use_head"},
    preprocessor=lambda config: dict(image_processor_type="GraniteDoclingImageProcessor", size=square(config)),
    image_processors={"GraniteDoclingImageProcessor": OPENAI | dict(size=[512, 512], resample=3)},
    resize={"transformers": "bicubic"},
    timm=None,
    presets=(),
)
"""SigLIP without head; its connector, with the mergers of deep features, lies inside the vision part, and is not read."""

_COSMOS3 = (
    (r"\.self_attn\.to_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
"""transformers 5 writes the tower of a whole model under the names of the language model's public file."""


COSMOS3_EDGE = replace(
    SIGLIP2,
    name="cosmos3_edge_vision",
    whole_models=(WholeModel(model_type="cosmos3_edge"),),
    architecture="Cosmos3EdgeVisionModel",
    classifier="",
    beside=(),
    prefix="",
    defaults=SIGLIP2.defaults
    | dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16),
    read_config=lambda config, names: replace(
        SIGLIP2.read_config(config | {"vision_use_head": False}, names), frames="apart"
    ),
    write_config=lambda config: {k: v for k, v in SIGLIP2.write_config(config).items() if k != "vision_use_head"},
    spellings=_COSMOS3,
    preprocessor=lambda config: dict(image_processor_type="Cosmos3EdgeImageProcessor", patch_size=config.patch_size),
    image_processors={
        "Cosmos3EdgeImageProcessor": HALF
        | dict(size={"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}, resample=3)
        | dict(patch_size=16, merge_size=2, temporal_patch_size=1)
    },
    resize={"transformers": "bilinear_antialias"},
    timm=None,
    presets=(),
)
"""SigLIP 2 NaFlex without head, for videos too, each frame on its own."""
