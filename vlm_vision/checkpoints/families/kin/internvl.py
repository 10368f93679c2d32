"""The towers of InternVL and of Qianfan-OCR: a ViT with LayerScale, in the large one with RMSNorm and normed queries and keys."""

from typing import Literal

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import (
    BASE,
    activation,
    activation_back,
    common,
    common_back,
    square,
)
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig

_NORMS: dict[str, Literal["layer", "rms"]] = {"layer_norm": "layer", "rms_norm": "rms"}


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    if config["norm_type"] not in _NORMS:
        raise ValueError(f"norm_type is {config['norm_type']!r}: expected one of {', '.join(_NORMS)}")
    fields = common(config)
    if fields["image_size"][0] != fields["image_size"][1]:
        raise ValueError(
            f"image_size is {list(fields['image_size'])}: expected a square, since transformers resizes one"
        )
    placed = config["use_absolute_position_embeddings"]
    return ViTConfig(
        **fields,
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        norm=_NORMS[config["norm_type"]],
        outer_norm="layer" if not config["use_mean_pooling"] and config["norm_type"] == "rms_norm" else "same",
        qkv_bias=config["attention_bias"],
        qk_norm="width" if config["use_qk_norm"] else "none",
        qk_kind="rms" if config["use_qk_norm"] else "same",
        qk_eps=1e-6 if config["use_qk_norm"] else 0.0,
        position="learned" if placed else "none",
        position_prefix=int(placed),
        mask_token=config["use_mask_token"],
        layer_scale=float(config["layer_scale_init_value"]),
        drop_path=float(config.get("drop_path_rate", 0.0)),
        final_norm=not config["use_mean_pooling"],
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        norm_type={ours: theirs for theirs, ours in _NORMS.items()}[config.norm],
        attention_bias=config.qkv_bias,
        use_qk_norm=config.qk_norm == "width",
        use_absolute_position_embeddings=config.position == "learned",
        use_mask_token=config.mask_token,
        layer_scale_init_value=config.layer_scale,
        use_mean_pooling=not config.final_norm,
        drop_path_rate=config.drop_path,
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    rows = layer("patch_embed", "embeddings.patch_embeddings.projection")
    rows.append(key("cls_token", "embeddings.cls_token"))
    if config.position == "learned":
        rows.append(key("position.table", "embeddings.position_embeddings"))
    if config.mask_token:
        rows.append(key("mask_token", "embeddings.mask_token"))
    if config.final_norm:
        rows += layer("norm", "layernorm")
    separate = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    names = BlockNames(**_BLOCK, qkv="attention.qkv" if style == "memory" else separate)
    return rows + names.rows(config)


_BLOCK = dict(
    stem="encoder.layer.{}", norm1="layernorm_before", proj="attention.projection_layer", norm2="layernorm_after",
    fc1="mlp.fc1", fc2="mlp.fc2", scale1="lambda_1", scale2="lambda_2", q_norm="attention.q_norm",
    k_norm="attention.k_norm",
)  # fmt: skip

_QIANFAN = (
    (r"^(encoder\.)?layers\.", "encoder.layer."),
    (r"\.ls(\d)$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.class_embedding$", ".cls_token"),
    (r"\.position_embedding$", ".position_embeddings"),
    (r"\.patch_embedding\.", ".patch_embeddings.projection."),
)
"""Names of Qianfan-OCR, and InternVL's."""


INTERNVL = Family(
    name="internvl_vision",
    aliases={"qianfan_ocr_vision": dict(attention_bias=True, drop_path_rate=0.1)},
    whole_models=(
        WholeModel(model_type="internvl", tower="internvl_vision"),
        WholeModel(model_type="qianfan_ocr", tower="qianfan_ocr_vision"),
    ),
    architecture="InternVLVisionModel",
    landmarks=("embeddings.patch_embeddings.projection.weight", "embeddings.patch_embedding.weight"),
    memory_mark=".attention.qkv.",  # here the second layout is the one of Qianfan's files
    spellings=_QIANFAN,
    defaults=BASE
    | dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        image_size=[448, 448],
        patch_size=[14, 14],
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        norm_type="layer_norm",
        attention_bias=False,
        use_qk_norm=False,
        use_mask_token=False,
        use_absolute_position_embeddings=True,
        layer_scale_init_value=0.1,
        use_mean_pooling=True,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="GotOcr2ImageProcessor", size=square(config)),
    resize={"transformers": "bicubic"},
)
"""Chen et al. 2024 (arXiv:2312.14238), Zhu et al. 2025 (arXiv:2504.10479)."""
