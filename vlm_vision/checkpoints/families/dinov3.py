"""DINOv3: rotary positions."""

from vlm_vision.checkpoints.families.family import Family, Json, Presets, Style, row
from vlm_vision.checkpoints.families.fields import (
    BASE,
    IMAGENET,
    activation,
    activation_back,
    blocks,
    common,
    common_back,
    square,
)
from vlm_vision.checkpoints.keys import ZEROS, Key, key, layer
from vlm_vision.nn.config import ViTConfig


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
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


def _config_back(config: ViTConfig) -> Json:
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


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
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


def _timm(config: ViTConfig) -> str:
    size = "small_plus" if config.mlp == "swiglu" else "small"
    return f"vit_{size}_patch16_dinov3" + ("_qkvb" if config.qkv_bias else "")


DINOV3 = Family(
    name="dinov3_vit",
    architecture="DINOv3ViTModel",
    landmarks=("embeddings.patch_embeddings.weight",),
    memory_mark="model.layer.",
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
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="DINOv3ViTImageProcessor", size=square(config)) | IMAGENET,
    image_processors={"DINOv3ViTImageProcessor": IMAGENET | dict(size=[224, 224], resample=2, kernel="float")},
    resize=dict.fromkeys(("transformers", "timm", "original"), "bicubic"),  # which has nothing to do
    unresized=True,
    timm=_timm,
    presets=(
        Presets(  # Siméoni et al. 2025 (arXiv:2508.10104)
            name="dinov3",
            fields=dict(
                position="rope2d", num_registers=4, mask_token=True, layer_scale=1.0, norm_eps=1e-5, key_bias=False
            ),
            rows=(
                row("small", "16:224"),
                row("small_plus", "16:224"),
                row("base", "16:224"),
                row("large", "16:224"),
                row("huge_plus", "16:224"),
                row("7b", "16:224", qkv_bias=False, key_bias=True),
            ),
            sizes={
                "small_plus": dict(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536, mlp="swiglu"),
                "huge_plus": dict(embed_dim=1280, depth=32, num_heads=20, mlp_dim=5120, mlp="swiglu"),
                "7b": dict(embed_dim=4096, depth=40, num_heads=32, mlp_dim=8192, mlp="swiglu"),
            },
            label="{name}_{size}",
        ),
    ),
)
