"""CLIP, and the models whose image tower is one: MetaCLIP 2, and LLaVA with the tower that it usually has."""

from vlm_vision.checkpoints.families.family import Family, Json, Presets, Style, WholeModel, row
from vlm_vision.checkpoints.families.fields import (
    BASE,
    BICUBIC_ANTIALIAS,
    CLIP_PROCESSOR,
    activation,
    activation_back,
    block_keys,
    common,
    common_back,
    square,
)
from vlm_vision.checkpoints.families.sizes import GIANT_CLIP
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig


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


_PRESET: Json = dict(position_prefix=1, norm_eps=1e-5, pool_head="linear", pre_norm=True, patch_bias=False)

CLIP = Family(
    name="clip_vision_model",
    aliases={
        "metaclip_2_vision_model": {},
        "altclip_vision_model": {},
        "chinese_clip_vision_model": {},
        "clipseg_vision_model": {},
        "kosmos_2_vision_model": dict(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
        ),
        "git_vision_model": dict(patch_size=16),
    },
    whole_models=(
        WholeModel(model_type="clip", checked=True, outer_fields={"projection_dim": 512}),
        WholeModel(
            model_type="metaclip_2", checked=True, tower="metaclip_2_vision_model", outer_fields={"projection_dim": 512}
        ),
        WholeModel(model_type="altclip", tower="altclip_vision_model", outer_fields={"projection_dim": 768}),
        WholeModel(model_type="chinese_clip", tower="chinese_clip_vision_model", outer_fields={"projection_dim": 512}),
        WholeModel(model_type="clipseg", tower="clipseg_vision_model", outer_fields={"projection_dim": 512}),
        WholeModel(model_type="kosmos-2", tower="kosmos_2_vision_model"),
        WholeModel(model_type="git", tower="git_vision_model"),
        *(
            WholeModel(model_type=name)
            for name in ("llava", "llava_next", "llava_next_video", "video_llava", "vipllava", "granite4_vision")
        ),
    ),
    siblings=(
        "text_model.",
        "text_projection.",
        "visual_projection.",
        "logit_scale",
        "language_model.",
        "model.language_model.",
        "multi_modal_projector.",
        "model.multi_modal_projector.",
        "lm_head.",
        "image_newline",
        "model.image_newline",
    ),  # fmt: skip
    architecture="CLIPVisionModel",
    landmarks=("embeddings.patch_embedding.weight",),
    beside=("visual_projection.weight",),
    prefix="vision_model.",
    spellings=((r"encoder\.layer\.", "encoder.layers."),),  # AltCLIP as transformers 5 writes it
    defaults=BASE
    | dict(patch_size=32, intermediate_size=3072, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=512),
    read_config=_clip_config,
    write_config=_clip_config_back,
    keys=_clip_keys,
    preprocessor=lambda config: dict(
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": min(config.image_size)},
        crop_size=square(config),
    ),
    image_processors=dict.fromkeys(
        ("CLIPImageProcessor", "LlavaNextImageProcessor", "ChineseCLIPImageProcessor", "VideoLlavaImageProcessor"),
        CLIP_PROCESSOR,
    ),
    resize={"transformers": "bicubic", "timm": BICUBIC_ANTIALIAS, "open_clip": BICUBIC_ANTIALIAS},
    timm=lambda config: (
        "vit_base_patch16_clip_quickgelu_224" if config.mlp == "quick_gelu" else "vit_base_patch16_clip_224"
    ),
    presets=(
        Presets(  # Radford et al. 2021 (arXiv:2103.00020), and the models after it with its activation
            name="clip",
            fields=_PRESET | dict(mlp="quick_gelu"),
            rows=(
                row("base", "32:224 16:224", pool_dim=512),
                row("large", "14:224,336", pool_dim=768),
                row("huge", "14:224,378", pool_dim=1024),  # DFN, MetaCLIP
                row("gigantic", "14:224", pool_dim=1280),  # MetaCLIP
            ),
        ),
        Presets(
            name="openclip",
            fields=_PRESET,
            rows=(
                row("base", "32:224,256 16:224", pool_dim=512),
                row("large", "14:224", pool_dim=768),
                row("huge", "14:224", pool_dim=1024),
                row("giant", "14:224", pool_dim=1024),
                row("gigantic", "14:224", pool_dim=1280),
            ),
            sizes={"giant": GIANT_CLIP},
        ),
    ),
)
"""Also MetaCLIP 2 (Chuang et al. 2025, arXiv:2507.22062)."""
