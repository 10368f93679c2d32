"""ViT, DeiT, MAE, I-JEPA and DINO."""

from dataclasses import replace

from vlm_vision.checkpoints.families.family import Family, Json, Presets, Style, WholeModel, row
from vlm_vision.checkpoints.families.fields import (
    BASE,
    BICUBIC_ANTIALIAS,
    HALF,
    IMAGENET,
    activation,
    activation_back,
    blocks,
    common,
    common_back,
    num_labels,
    qkv,
    square,
)
from vlm_vision.checkpoints.families.sizes import GIANT_CLIP
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig


def _fields(config: Json, names: frozenset[str]) -> Json:
    """Fields that the four families share."""
    pooler = "pooler.dense.weight" in names
    if pooler and config["pooler_act"] != "tanh":
        raise ValueError(f"config.json has pooler_act {config['pooler_act']!r}: only 'tanh' is supported")
    return common(config) | dict(
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        qkv_bias=config["qkv_bias"],
        mask_token="embeddings.mask_token" in names,
        pool_head="tanh" if pooler else "none",
        pool_dim=(config["pooler_output_size"] or config["hidden_size"]) if pooler else 0,
    )


def _vit_config(config: Json, names: frozenset[str]) -> ViTConfig:
    classes = num_labels(config) if "classifier.weight" in names else 0
    return ViTConfig(**_fields(config, names), position_prefix=1, num_classes=classes)


def _deit_config(config: Json, names: frozenset[str]) -> ViTConfig:
    distilled = "distillation_classifier.weight" in names
    return ViTConfig(
        **_fields(config, names),
        num_registers=1,
        position_prefix=2,
        num_classes=num_labels(config) if distilled or "classifier.weight" in names else 0,
        pool="cls_dist" if distilled else "cls",
        class_input="distilled" if distilled else "pooled",
    )


def _ijepa_config(config: Json, names: frozenset[str]) -> ViTConfig:
    if "pooler.dense.weight" in names:
        raise ValueError("an I-JEPA with a pooler reads its first patch as if it were a class token: save it without")
    classes = num_labels(config) if "classifier.weight" in names else 0
    return ViTConfig(**_fields(config, names), class_token=False, pool="mean", num_classes=classes)


def _config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        qkv_bias=config.qkv_bias,
        pooler_act="tanh",
        pooler_output_size=config.pool_dim or config.embed_dim,
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    keys = [
        key("position.table", "embeddings.position_embeddings"),
        *layer("patch_embed", "embeddings.patch_embeddings.projection", bias=config.patch_bias),
        *layer("norm", "layernorm"),
    ]
    if config.class_token:
        keys.append(key("cls_token", "embeddings.cls_token"))
    if config.num_registers:
        keys.append(key("registers", "embeddings.distillation_token"))
    if config.mask_token:
        keys.append(key("mask_token", "embeddings.mask_token"))
    if config.pool_head == "tanh":
        keys += layer("pool_head", "pooler.dense")
    if config.class_input == "distilled":
        keys += layer("head", "cls_classifier") + layer("head_dist", "distillation_classifier")
    elif config.num_classes:
        keys += layer("head", "classifier")
    stem, proj, fc1, fc2 = _BLOCK[style]
    return keys + blocks(
        config,
        lambda i: [
            *layer(f"blocks.{i}.norm1", f"{stem}.{i}.layernorm_before"),
            *layer(f"blocks.{i}.attn.qkv", qkv(f"{stem}.{i}", style), bias=config.qkv_bias),
            *layer(f"blocks.{i}.attn.proj", f"{stem}.{i}.{proj}"),
            *layer(f"blocks.{i}.norm2", f"{stem}.{i}.layernorm_after"),
            *layer(f"blocks.{i}.mlp.fc1", f"{stem}.{i}.{fc1}"),
            *layer(f"blocks.{i}.mlp.fc2", f"{stem}.{i}.{fc2}"),
        ],
    )


_BLOCK: dict[Style, tuple[str, str, str, str]] = {
    "hub": ("encoder.layer", "attention.output.dense", "intermediate.dense", "output.dense"),
    "memory": ("layers", "attention.o_proj", "mlp.fc1", "mlp.fc2"),
}
"""Stem of the blocks, attention's output, the MLP's two layers."""

_DEFAULTS = BASE | dict(
    patch_size=16,
    intermediate_size=3072,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    qkv_bias=True,
    pooler_output_size=None,
    pooler_act="tanh",
)

VIT = Family(
    name="vit",
    whole_models=(WholeModel(model_type="vision-text-dual-encoder", outer_fields={"projection_dim": 512}),),
    architecture="ViTModel",
    landmarks=("embeddings.patch_embeddings.projection.weight",),
    beside=("classifier.weight", "classifier.bias"),
    defaults=_DEFAULTS,
    read_config=_vit_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="ViTImageProcessor", size=square(config)),
    image_processors={"ViTImageProcessor": HALF | dict(size=[224, 224], resample=2)},
    resize={"transformers": "bicubic", "timm": BICUBIC_ANTIALIAS, "original": "zoom", "big_vision": "zoom"},
    timm=lambda config: "vit_base_patch16_224" if config.inner_norm == "none" else "beit3_base_patch16_224",
    presets=(
        Presets(  # Dosovitskiy et al. 2020 (arXiv:2010.11929), Steiner et al. 2021; transformers' epsilon
            name="vit",
            fields=dict(position_prefix=1, norm_eps=1e-12),
            rows=(
                row("tiny", "16:224"),
                row("small", "16:224 32:224"),
                row("base", "16:224,384 32:224 8:224"),
                row("large", "16:224,384 14:224"),
                row("huge", "14:224"),
            ),
        ),
    ),
)

_SMALL = {"transformers": "bicubic", "timm": BICUBIC_ANTIALIAS, "original": "bicubic"}

DEIT = replace(
    VIT,
    name="deit",
    whole_models=(),
    architecture="DeiTModel",
    beside=tuple(
        f"{name}.{part}"
        for name in ("cls_classifier", "distillation_classifier", "classifier")
        for part in ("weight", "bias")
    ),
    read_config=_deit_config,
    preprocessor=lambda config: (
        dict(
            image_processor_type="DeiTImageProcessor",
            size={side: round(length / 0.875) for side, length in square(config).items()},
            crop_size=square(config),
        )
        | IMAGENET
    ),
    image_processors={
        "DeiTImageProcessor": HALF | dict(do_center_crop=True, crop_size=224, size=[256, 256], resample=3)
    },
    resize=_SMALL,
    timm=lambda config: "deit_base_distilled_patch16_224" if config.pool == "cls_dist" else "deit3_base_patch16_224",
    presets=(
        Presets(  # Touvron et al. 2020 (arXiv:2012.12877), with distillation token
            name="deit",
            fields=dict(position_prefix=2, num_registers=1, pool="cls_dist"),
            rows=(row("tiny", "16:224"), row("small", "16:224"), row("base", "16:224,384")),
        ),
        Presets(  # Touvron et al. 2022 (arXiv:2204.07118)
            name="deit3",
            fields=dict(layer_scale=1e-4),
            rows=(
                row("small", "16:224,384"),
                row("base", "16:224,384"),
                row("large", "16:224,384"),
                row("huge", "14:224"),
            ),
        ),
    ),
)

MAE = replace(
    VIT,
    name="vit_mae",
    siblings=("decoder.",),
    whole_models=(),
    architecture="ViTMAEModel",
    beside=(),
    preprocessor=lambda config: dict(image_processor_type="ViTImageProcessor", size=square(config)) | IMAGENET,
    resize=_SMALL,
    presets=(
        Presets(  # He et al. 2021 (arXiv:2111.06377)
            name="mae",
            fields=dict(position_prefix=1),
            rows=(row("base", "16:224"), row("large", "16:224"), row("huge", "14:224")),
        ),
    ),
)

IJEPA = replace(
    VIT,
    name="ijepa",
    whole_models=(),
    architecture="IJepaModel",
    read_config=_ijepa_config,
    resize=_SMALL,
    presets=(
        Presets(  # Assran et al. 2023 (arXiv:2301.08243)
            name="ijepa",
            fields=dict(class_token=False, pool="mean"),
            rows=(row("huge", "14:224 16:448"), row("giant", "16:224")),
            sizes={"giant": GIANT_CLIP},
        ),
    ),
)

DINO = replace(
    VIT,
    name="dino",
    whole_models=(),
    written_as="vit",
    resize={"transformers": "bicubic", "timm": BICUBIC_ANTIALIAS, "original": "bicubic_offset_unequal"},
    presets=(
        Presets(  # Caron et al. 2021 (arXiv:2104.14294)
            name="dino",
            fields=dict(position_prefix=1, position_resize="bicubic_offset_unequal"),
            rows=(row("small", "16:224 8:224"), row("base", "16:224 8:224")),
        ),
    ),
)
"""transformers has it as a ViT."""
