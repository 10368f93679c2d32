"""SigLIP and SigLIP 2 at one resolution, and SigLIP 2 NaFlex at any."""

import math
from dataclasses import replace
from functools import partial

from vlm_vision.checkpoints.families.family import Family, Json, Presets, Style, WholeModel, row
from vlm_vision.checkpoints.families.fields import (
    BASE,
    BICUBIC_ANTIALIAS,
    CENTRED,
    HALF,
    OPENAI,
    activation,
    activation_back,
    block_keys,
    common,
    common_back,
    num_labels,
    square,
)
from vlm_vision.checkpoints.keys import PATCH_VECTOR, Key, key, layer
from vlm_vision.nn.config import ViTConfig


def siglip_config(config: Json, names: frozenset[str]) -> ViTConfig:
    return ViTConfig(
        **common(config),
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        class_token=False,
        pool="map" if config["vision_use_head"] else "none",
        num_classes=num_labels(config) if "classifier.weight" in names else 0,
        class_input="patch_mean",
    )


def siglip_config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        intermediate_size=config.mlp_dim, hidden_act=activation_back(config.mlp), vision_use_head=config.pool == "map"
    )


def siglip_keys(config: ViTConfig, style: Style = "hub", *, linear: bool = False) -> list[Key]:
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
    return replace(siglip_config(config, names), position_resize="bilinear_antialias")


def _siglip2_config_back(config: ViTConfig) -> Json:
    rows, columns = config.grid
    if rows != columns:
        raise ValueError(f"siglip2 has square position tables only, got {rows}x{columns}")
    back = siglip_config_back(config) | dict(num_patches=rows * columns)
    del back["image_size"]
    return back


LANDMARK = "embeddings.patch_embedding.weight"
DEFAULTS = BASE | dict(
    patch_size=16, intermediate_size=3072, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, vision_use_head=True
)
_PRESET: Json = dict(class_token=False, mlp="gelu_tanh", pool="map")

SIGLIP = Family(
    name="siglip_vision_model",
    whole_models=(
        WholeModel(model_type="siglip", checked=True),
        *(
            WholeModel(model_type=name)
            for name in (
                "llava_onevision",
                "paligemma",
                "gemma3",
                "shieldgemma2",
                "t5gemma2_encoder",
                "aya_vision",
                "cohere2_vision",
                "deepseek_vl",
                "deepseek_vl_hybrid",
                "modernvbert",
                "ultravbert",
            )
        ),
        WholeModel(model_type="t5gemma2", around="encoder"),
        WholeModel(
            model_type="pi0",
            checked=True,
            around="vlm_config",
            preprocessor={"image_processor_type": "PI0ImageProcessor"},
        ),
    ),
    siblings=(
        "text_model.",
        "logit_scale",
        "logit_bias",
        "language_model.",
        "model.language_model.",
        "multi_modal_projector.",
        "model.multi_modal_projector.",
        "lm_head.",
        "image_newline",
        "model.image_newline",
        "paligemma_with_expert.",
        "state_proj.",
        "action_",
        "model.vlm.",
        "model.dit.",
        "model.embed_action_time.",
    ),  # fmt: skip
    architecture="SiglipVisionModel",
    classifier="siglip",
    landmarks=(LANDMARK,),
    beside=("classifier.weight", "classifier.bias"),
    prefix="vision_model.",
    defaults=DEFAULTS,
    read_config=siglip_config,
    write_config=siglip_config_back,
    keys=siglip_keys,
    preprocessor=lambda config: dict(image_processor_type="SiglipImageProcessor", size=square(config)),
    image_processors={
        "SiglipImageProcessor": HALF | dict(size=[224, 224], default_to_square=False, resample=3),
        "Gemma3ImageProcessor": HALF | dict(size=[224, 224], resample=2),
        "LlavaOnevisionImageProcessor": OPENAI | dict(size=[384, 384], resample=3),
        "Cohere2VisionImageProcessor": OPENAI | dict(size=[512, 512], resample=3, kernel="torch"),
        **dict.fromkeys(("DeepseekVLImageProcessor", "DeepseekVLHybridImageProcessor"), CENTRED),
        "PI0ImageProcessor": HALF
        | dict(size=dict(max_height=224, max_width=224), pad_size=[224, 224], do_pad=True, resample=3, kernel="torch"),
    },
    resize={
        "transformers": "bicubic",
        "timm": BICUBIC_ANTIALIAS,
        "open_clip": BICUBIC_ANTIALIAS,
        "original": "zoom",
        "big_vision": "zoom",
    },
    timm=lambda config: "vit_base_patch16_siglip_224",
    presets=(
        Presets(  # Zhai et al. 2023 (arXiv:2303.15343)
            name="siglip",
            fields=_PRESET,
            rows=(
                row("base", "16:224,256,384,512"),
                row("large", "16:256,384"),
                row("so400m", "14:224,384 16:256"),
            ),
        ),
        Presets(  # Tschannen et al. 2025 (arXiv:2502.14786)
            name="siglip2",
            fields=_PRESET,
            rows=(
                row("base", "32:256 16:224,256,384,512"),
                row("large", "16:256,384,512"),
                row("so400m", "14:224,384 16:256,384,512"),
                row("giantopt", "16:256,384"),
            ),
            sizes={"giantopt": dict(embed_dim=1536, depth=40, num_heads=16, mlp_dim=6144)},
        ),
    ),
)

SIGLIP2 = Family(
    name="siglip2_vision_model",
    whole_models=(WholeModel(model_type="siglip2", checked=True), WholeModel(model_type="lfm2_vl")),
    siblings=("text_model.", "logit_scale", "logit_bias"),
    architecture="Siglip2VisionModel",
    classifier="siglip2",
    landmarks=(LANDMARK,),
    beside=("classifier.weight", "classifier.bias"),
    prefix="vision_model.",
    defaults={name: value for name, value in DEFAULTS.items() if name != "image_size"} | dict(num_patches=256),
    read_config=_siglip2_config,
    write_config=_siglip2_config_back,
    keys=partial(siglip_keys, linear=True),
    preprocessor=lambda config: dict(
        image_processor_type="Siglip2ImageProcessor",
        patch_size=config.patch_size,
        max_num_patches=math.prod(config.grid),
    ),
    image_processors={
        "Siglip2ImageProcessor": HALF | dict(patch_size=16, max_num_patches=256, resample=2),
        "Lfm2VlImageProcessor": HALF
        | dict(
            encoder_patch_size=16,
            downsample_factor=2,
            min_image_tokens=64,
            max_image_tokens=256,
            resample=2,
            kernel="torch",
        ),
    },
    resize=dict.fromkeys(("transformers", "timm", "original", "big_vision"), "bilinear_antialias"),
    timm=lambda config: "naflexvit_base_patch16_siglip",
    presets=(
        Presets(
            name="siglip2_naflex",
            fields=_PRESET | dict(position_resize="bilinear_antialias"),
            rows=(row("base", "16:256"), row("so400m", "16:256")),
        ),
    ),
)
"""NaFlex; the other SigLIP 2 are of the family SIGLIP."""
