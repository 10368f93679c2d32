"""DINOv2, with and without registers, and DINOv3 in HuggingFace folders."""

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
from vlm_vision.checkpoints.keys import ZEROS, Key, key, layer
from vlm_vision.nn.config import ViTConfig


def _dinov2_config(config: Json, names: frozenset[str]) -> ViTConfig:
    swiglu = config["use_swiglu_ffn"]
    registers = config.get("num_register_tokens", 0)
    return ViTConfig(
        **common(config),
        mlp_dim=_mlp_dim(config["hidden_size"], config["mlp_ratio"], swiglu),
        mlp="swiglu" if swiglu else activation(config),
        qkv_bias=config["qkv_bias"],
        num_registers=registers,
        mask_token="embeddings.mask_token" in names,
        position_prefix=1,
        position_resize="bicubic_antialias" if "num_register_tokens" in config else "bicubic",
        layer_scale=float(config["layerscale_value"]),
        drop_path=config["drop_path_rate"],
        num_classes=num_labels(config) if "classifier.weight" in names else 0,
        class_input="cls_mean",
    )


def _mlp_dim(dim: int, ratio: float, swiglu: bool) -> int:
    hidden = int(dim * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


def _dinov2_config_back(config: ViTConfig) -> Json:
    swiglu = config.mlp == "swiglu"
    ratios = [ratio for ratio in range(1, 17) if _mlp_dim(config.embed_dim, ratio, swiglu) == config.mlp_dim]
    if not ratios:
        raise ValueError(
            f"dinov2 has whole mlp_ratios, of which none gives {config.mlp_dim} hidden channels at width {config.embed_dim}"
        )
    if config.layer_scale is None:
        raise ValueError("dinov2 has a LayerScale and this encoder has none (folded?): save it before folding")
    return common_back(config) | dict(
        mlp_ratio=4 if 4 in ratios else ratios[0],
        use_swiglu_ffn=swiglu,
        hidden_act="gelu" if swiglu else activation_back(config.mlp),
        qkv_bias=config.qkv_bias,
        layerscale_value=config.layer_scale,
        drop_path_rate=config.drop_path,
        use_mask_token=config.mask_token,
    )


def _registers_config_back(config: ViTConfig) -> Json:
    back = _dinov2_config_back(config) | dict(num_register_tokens=config.num_registers)
    del back["use_mask_token"]
    return back


def _dinov2_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
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
    proj = "o_proj" if style == "memory" else "output.dense"
    fc1, fc2 = _MLP[config.mlp == "swiglu", style]

    def block(i: int) -> list[Key]:
        theirs = f"encoder.layer.{i}"
        return [
            *layer(f"blocks.{i}.norm1", f"{theirs}.norm1"),
            *layer(f"blocks.{i}.attn.qkv", qkv(theirs, style), bias=config.qkv_bias),
            *layer(f"blocks.{i}.attn.proj", f"{theirs}.attention.{proj}"),
            key(f"blocks.{i}.residual1.scale", f"{theirs}.layer_scale1.lambda1"),
            *layer(f"blocks.{i}.norm2", f"{theirs}.norm2"),
            *layer(f"blocks.{i}.mlp.fc1", tuple(f"{theirs}.mlp.{part}" for part in fc1)),
            *layer(f"blocks.{i}.mlp.fc2", f"{theirs}.mlp.{fc2}"),
            key(f"blocks.{i}.residual2.scale", f"{theirs}.layer_scale2.lambda1"),
        ]

    return keys + blocks(config, block)


_MLP: dict[tuple[bool, Style], tuple[tuple[str, ...], str]] = {
    (False, "hub"): (("fc1",), "fc2"),
    (False, "memory"): (("fc1",), "fc2"),
    (True, "hub"): (("weights_in",), "weights_out"),
    (True, "memory"): (("gate_proj", "up_proj"), "down_proj"),
}
"""(gated or not, style) -> names of the MLP's first layer, which may be in two parts, and of the second."""


def _dinov3_config(config: Json, names: frozenset[str]) -> ViTConfig:
    if config["query_bias"] != config["value_bias"]:
        raise ValueError("query_bias and value_bias differ: expected both or neither")
    gated = config["use_gated_mlp"]
    if gated and config["hidden_act"] != "silu":
        raise ValueError(f"hidden_act is {config['hidden_act']!r} with a gated MLP: expected 'silu'")
    return ViTConfig(
        **common(config),
        mlp_dim=config["intermediate_size"],
        mlp="swiglu" if gated else activation(config),
        qkv_bias=config["query_bias"],
        key_bias=config["key_bias"] or not config["query_bias"],
        proj_bias=config["proj_bias"],
        mlp_bias=config["mlp_bias"],
        num_registers=config["num_register_tokens"],
        mask_token="embeddings.mask_token" in names,
        position="rope2d",
        rope_base=float(config["rope_theta"]),
        layer_scale=float(config["layerscale_value"]),
        drop_path=config["drop_path_rate"],
    )


def _dinov3_config_back(config: ViTConfig) -> Json:
    gated = config.mlp == "swiglu"
    return common_back(config) | dict(
        intermediate_size=config.mlp_dim,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else activation_back(config.mlp),
        query_bias=config.qkv_bias,
        value_bias=config.qkv_bias,
        key_bias=config.qkv_bias and config.key_bias,
        proj_bias=config.proj_bias,
        mlp_bias=config.mlp_bias,
        num_register_tokens=config.num_registers,
        rope_theta=config.rope_base,
        layerscale_value=config.layer_scale,
        drop_path_rate=config.drop_path,
    )


def _dinov3_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    stem = "model.layer" if style == "memory" else "layer"
    fc1 = ("gate_proj", "up_proj") if config.mlp == "swiglu" else ("up_proj",)
    keys = [
        key("cls_token", "embeddings.cls_token"),
        *layer("patch_embed", "embeddings.patch_embeddings", bias=config.patch_bias),
        *layer("norm", "norm"),
    ]
    if config.num_registers:
        keys.append(key("registers", "embeddings.register_tokens"))
    if config.mask_token:
        keys.append(key("mask_token", "embeddings.mask_token"))

    def block(i: int) -> list[Key]:
        theirs = f"{stem}.{i}"
        rows = [
            *layer(f"blocks.{i}.norm1", f"{theirs}.norm1"),
            key(f"blocks.{i}.attn.qkv.weight", tuple(f"{theirs}.attention.{part}_proj.weight" for part in "qkv")),
            *layer(f"blocks.{i}.attn.proj", f"{theirs}.attention.o_proj", bias=config.proj_bias),
            key(f"blocks.{i}.residual1.scale", f"{theirs}.layer_scale1.lambda1"),
            *layer(f"blocks.{i}.norm2", f"{theirs}.norm2"),
            *layer(f"blocks.{i}.mlp.fc1", tuple(f"{theirs}.mlp.{part}" for part in fc1), bias=config.mlp_bias),
            *layer(f"blocks.{i}.mlp.fc2", f"{theirs}.mlp.down_proj", bias=config.mlp_bias),
            key(f"blocks.{i}.residual2.scale", f"{theirs}.layer_scale2.lambda1"),
        ]
        if config.qkv_bias:
            k = f"{theirs}.attention.k_proj.bias" if config.key_bias else ZEROS
            parts = (f"{theirs}.attention.q_proj.bias", k, f"{theirs}.attention.v_proj.bias")
            rows.append(key(f"blocks.{i}.attn.qkv.bias", parts))
        return rows

    return keys + blocks(config, block)


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


DINOV2 = Family(
    landmark="embeddings.patch_embeddings.projection.weight",
    beside=_CLASSIFIER,
    defaults=_DINOV2 | dict(patch_size=14),
    read_config=_dinov2_config,
    write_config=_dinov2_config_back,
    keys=_dinov2_keys,
    architecture="Dinov2Model",
    preprocessor=_dinov2_preprocessor,
)

DINOV2_WITH_REGISTERS = Family(
    landmark="embeddings.patch_embeddings.projection.weight",
    beside=_CLASSIFIER,
    defaults=_DINOV2 | dict(patch_size=16, num_register_tokens=4),
    read_config=_dinov2_config,
    write_config=_registers_config_back,
    keys=_dinov2_keys,
    architecture="Dinov2WithRegistersModel",
    preprocessor=_dinov2_preprocessor,
)

DINOV3 = Family(
    landmark="embeddings.patch_embeddings.weight",
    beside=(),
    defaults=BASE
    | dict(
        hidden_size=384,
        num_attention_heads=6,
        patch_size=16,
        intermediate_size=1536,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        rope_theta=100.0,
        query_bias=True,
        key_bias=False,
        value_bias=True,
        proj_bias=True,
        mlp_bias=True,
        use_gated_mlp=False,
        num_register_tokens=0,
        layerscale_value=1.0,
        drop_path_rate=0.0,
    ),
    read_config=_dinov3_config,
    write_config=_dinov3_config_back,
    keys=_dinov3_keys,
    memory_mark="model.layer.",
    architecture="DINOv3ViTModel",
    preprocessor=lambda config: dict(
        image_processor_type="DINOv3ViTImageProcessor",
        size=square(config),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ),
)
