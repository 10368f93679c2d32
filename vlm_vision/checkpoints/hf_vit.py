"""ViT and DINOv2 in HuggingFace folders: the `encoder.layer.i` layout."""

from vlm_vision.checkpoints.hf_family import (
    ACTIVATION_NAMES,
    BASE,
    Family,
    Json,
    activation,
    blocks,
    common,
    common_back,
    num_labels,
    square,
)
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.config import ViTConfig


def _vit_config(config: Json, names: frozenset[str]) -> ViTConfig:
    pooler = "pooler.dense.weight" in names
    if pooler and config["pooler_act"] != "tanh":
        raise ValueError(f"config.json has pooler_act {config['pooler_act']!r}: only 'tanh' is supported")
    return ViTConfig(
        **common(config),
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        qkv_bias=config["qkv_bias"],
        mask_token="embeddings.mask_token" in names,
        position_prefix=1,
        pool_head="tanh" if pooler else "none",
        pool_dim=(config["pooler_output_size"] or config["hidden_size"]) if pooler else 0,
        num_classes=num_labels(config) if "classifier.weight" in names else 0,
    )


def _vit_config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        intermediate_size=config.mlp_dim,
        hidden_act=ACTIVATION_NAMES[config.mlp],
        qkv_bias=config.qkv_bias,
        pooler_act="tanh",
        pooler_output_size=config.pool_dim or config.embed_dim,
    )


def _vit_keys(config: ViTConfig) -> list[Key]:
    keys = [
        key("cls_token", "embeddings.cls_token"),
        key("position.table", "embeddings.position_embeddings"),
        *layer("patch_embed", "embeddings.patch_embeddings.projection", bias=config.patch_bias),
        *layer("norm", "layernorm"),
    ]
    if config.mask_token:
        keys.append(key("mask_token", "embeddings.mask_token"))
    if config.pool_head == "tanh":
        keys += layer("pool_head", "pooler.dense")
    if config.num_classes:
        keys += layer("head", "classifier")
    return keys + blocks(
        config,
        lambda i: [
            *layer(f"blocks.{i}.norm1", f"encoder.layer.{i}.layernorm_before"),
            *layer(f"blocks.{i}.attn.qkv", _qkv(f"encoder.layer.{i}.attention.attention"), bias=config.qkv_bias),
            *layer(f"blocks.{i}.attn.proj", f"encoder.layer.{i}.attention.output.dense"),
            *layer(f"blocks.{i}.norm2", f"encoder.layer.{i}.layernorm_after"),
            *layer(f"blocks.{i}.mlp.fc1", f"encoder.layer.{i}.intermediate.dense"),
            *layer(f"blocks.{i}.mlp.fc2", f"encoder.layer.{i}.output.dense"),
        ],
    )


def _qkv(stem: str) -> tuple[str, ...]:
    return tuple(f"{stem}.{part}" for part in ("query", "key", "value"))


def _dinov2_config(config: Json, names: frozenset[str]) -> ViTConfig:
    hidden = int(config["hidden_size"] * config["mlp_ratio"])
    swiglu = config["use_swiglu_ffn"]
    registers = config.get("num_register_tokens", 0)
    return ViTConfig(
        **common(config),
        mlp_dim=(int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden,
        mlp="swiglu" if swiglu else activation(config),
        qkv_bias=config["qkv_bias"],
        num_registers=registers,
        mask_token="embeddings.mask_token" in names,
        position_prefix=1,
        position_resize="bicubic_antialias" if "num_register_tokens" in config else "bicubic",
        layer_scale=config["layerscale_value"],
        drop_path=config["drop_path_rate"],
        num_classes=num_labels(config) if "classifier.weight" in names else 0,
        class_input="cls_mean",
    )


def _dinov2_config_back(config: ViTConfig) -> Json:
    swiglu = config.mlp == "swiglu"
    if swiglu and config.mlp_dim != (int(4 * config.embed_dim * 2 / 3) + 7) // 8 * 8:
        raise ValueError(f"dinov2 cannot express a SwiGLU of {config.mlp_dim} channels at width {config.embed_dim}")
    if not swiglu and config.mlp_dim % config.embed_dim:
        raise ValueError(
            f"dinov2 needs an mlp_dim that is a multiple of the width {config.embed_dim}, got {config.mlp_dim}"
        )
    if config.layer_scale is None:
        raise ValueError("dinov2 has a LayerScale and this encoder has none (folded?): save it before folding")
    return common_back(config) | dict(
        mlp_ratio=4 if swiglu else config.mlp_dim // config.embed_dim,
        use_swiglu_ffn=swiglu,
        hidden_act="gelu" if swiglu else ACTIVATION_NAMES[config.mlp],
        qkv_bias=config.qkv_bias,
        layerscale_value=config.layer_scale,
        drop_path_rate=config.drop_path,
        use_mask_token=config.mask_token,
    )


def _registers_config_back(config: ViTConfig) -> Json:
    back = _dinov2_config_back(config) | dict(num_register_tokens=config.num_registers)
    del back["use_mask_token"]
    return back


def _dinov2_keys(config: ViTConfig) -> list[Key]:
    fc1, fc2 = ("weights_in", "weights_out") if config.mlp == "swiglu" else ("fc1", "fc2")
    keys = [
        key("cls_token", "embeddings.cls_token"),
        key("position.table", "embeddings.position_embeddings"),
        *layer("patch_embed", "embeddings.patch_embeddings.projection", bias=config.patch_bias),
        *layer("norm", "layernorm"),
    ]
    if config.num_registers:
        keys.append(key("registers", "embeddings.register_tokens"))
    if config.mask_token:
        keys.append(key("mask_token", "embeddings.mask_token", drop=1))
    if config.num_classes:
        keys += layer("head", "classifier")
    return keys + blocks(
        config,
        lambda i: [
            *layer(f"blocks.{i}.norm1", f"encoder.layer.{i}.norm1"),
            *layer(f"blocks.{i}.attn.qkv", _qkv(f"encoder.layer.{i}.attention.attention"), bias=config.qkv_bias),
            *layer(f"blocks.{i}.attn.proj", f"encoder.layer.{i}.attention.output.dense"),
            key(f"blocks.{i}.residual1.scale", f"encoder.layer.{i}.layer_scale1.lambda1"),
            *layer(f"blocks.{i}.norm2", f"encoder.layer.{i}.norm2"),
            *layer(f"blocks.{i}.mlp.fc1", f"encoder.layer.{i}.mlp.{fc1}"),
            *layer(f"blocks.{i}.mlp.fc2", f"encoder.layer.{i}.mlp.{fc2}"),
            key(f"blocks.{i}.residual2.scale", f"encoder.layer.{i}.layer_scale2.lambda1"),
        ],
    )


_LANDMARK = "embeddings.patch_embeddings.projection.weight"
_CLASSIFIER = ("classifier.weight", "classifier.bias")
_DINOV2 = BASE | dict(
    mlp_ratio=4,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    qkv_bias=True,
    layerscale_value=1.0,
    drop_path_rate=0.0,
    use_swiglu_ffn=False,
)


def _dinov2_preprocessor(config: ViTConfig) -> Json:
    return dict(
        image_processor_type="BitImageProcessor",
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


VIT = Family(
    landmark=_LANDMARK,
    beside=_CLASSIFIER,
    defaults=BASE
    | dict(
        patch_size=16,
        intermediate_size=3072,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        qkv_bias=True,
        pooler_output_size=None,
        pooler_act="tanh",
    ),
    read_config=_vit_config,
    write_config=_vit_config_back,
    keys=_vit_keys,
    architecture="ViTModel",
    original_resize={"original": "zoom", "big_vision": "zoom"},
    preprocessor=lambda config: dict(image_processor_type="ViTImageProcessor", size=square(config)),
)

DINOV2 = Family(
    landmark=_LANDMARK,
    beside=_CLASSIFIER,
    defaults=_DINOV2 | dict(patch_size=14),
    read_config=_dinov2_config,
    write_config=_dinov2_config_back,
    keys=_dinov2_keys,
    architecture="Dinov2Model",
    original_resize={"original": "bicubic_offset"},
    preprocessor=_dinov2_preprocessor,
)

DINOV2_WITH_REGISTERS = Family(
    landmark=_LANDMARK,
    beside=_CLASSIFIER,
    defaults=_DINOV2 | dict(patch_size=16, num_register_tokens=4),
    read_config=_dinov2_config,
    write_config=_registers_config_back,
    keys=_dinov2_keys,
    architecture="Dinov2WithRegistersModel",
    original_resize={"original": "bicubic_antialias"},
    preprocessor=_dinov2_preprocessor,
)
