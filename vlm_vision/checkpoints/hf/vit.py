"""ViT, DeiT, MAE and I-JEPA in HuggingFace folders."""

from dataclasses import replace

from vlm_vision.checkpoints.hf.family import (
    BASE,
    Family,
    Json,
    Style,
    activation,
    activation_back,
    blocks,
    common,
    common_back,
    num_labels,
    qkv,
    square,
)
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig


def _fields(config: Json, names: frozenset[str]) -> Json:
    """What the four families say alike."""
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
    landmark="embeddings.patch_embeddings.projection.weight",
    beside=("classifier.weight", "classifier.bias"),
    defaults=_DEFAULTS,
    read_config=_vit_config,
    write_config=_config_back,
    keys=_keys,
    architecture="ViTModel",
    preprocessor=lambda config: dict(image_processor_type="ViTImageProcessor", size=square(config)),
)

DEIT = replace(
    VIT,
    beside=tuple(
        f"{name}.{part}"
        for name in ("cls_classifier", "distillation_classifier", "classifier")
        for part in ("weight", "bias")
    ),
    read_config=_deit_config,
    architecture="DeiTModel",
    preprocessor=lambda config: dict(
        image_processor_type="DeiTImageProcessor",
        size={side: round(length / 0.875) for side, length in square(config).items()},
        crop_size=square(config),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ),
)

MAE = replace(
    VIT,
    beside=(),
    architecture="ViTMAEModel",
    preprocessor=lambda config: dict(
        image_processor_type="ViTImageProcessor",
        size=square(config),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ),
)

IJEPA = replace(VIT, read_config=_ijepa_config, architecture="IJepaModel")
