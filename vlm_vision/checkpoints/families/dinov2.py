"""DINOv2, with and without registers."""

from vlm_vision.checkpoints.families.family import Family, Json, Presets, Style, row
from vlm_vision.checkpoints.families.fields import (
    BASE,
    BICUBIC_ANTIALIAS,
    CLIP_PROCESSOR,
    IMAGENET,
    activation,
    activation_back,
    blocks,
    common,
    common_back,
    num_labels,
    qkv,
)
from vlm_vision.checkpoints.families.sizes import GIANT_DINO
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig


def dinov2_config(config: Json, names: frozenset[str]) -> ViTConfig:
    """Ours for their config.json."""
    swiglu = config["use_swiglu_ffn"]
    registers = config.get("num_register_tokens", 0)
    return ViTConfig(
        **common(config),
        mlp_dim=mlp_dim(config["hidden_size"], config["mlp_ratio"], swiglu),
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


def mlp_dim(dim: int, ratio: float, swiglu: bool) -> int:
    """Hidden channels that transformers makes of mlp_ratio."""
    hidden = int(dim * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


def layer_scale(config: ViTConfig) -> float:
    """Initial value of the LayerScale, which these models cannot be without."""
    if config.layer_scale is None:
        raise ValueError("dinov2 has a LayerScale and this encoder has none (folded?): save it before folding")
    return config.layer_scale


def _config_back(config: ViTConfig) -> Json:
    swiglu = config.mlp == "swiglu"
    ratios = [ratio for ratio in range(1, 17) if mlp_dim(config.embed_dim, ratio, swiglu) == config.mlp_dim]
    if not ratios:
        raise ValueError(
            f"dinov2 has whole mlp_ratios, of which none gives {config.mlp_dim} hidden channels at width {config.embed_dim}"
        )
    return common_back(config) | dict(
        mlp_ratio=4 if 4 in ratios else ratios[0],
        use_swiglu_ffn=swiglu,
        hidden_act="gelu" if swiglu else activation_back(config.mlp),
        qkv_bias=config.qkv_bias,
        layerscale_value=layer_scale(config),
        drop_path_rate=config.drop_path,
        use_mask_token=config.mask_token,
    )


def _registers_config_back(config: ViTConfig) -> Json:
    back = _config_back(config) | dict(num_register_tokens=config.num_registers)
    del back["use_mask_token"]
    return back


def dinov2_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    """The key table in both layouts."""
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


def _preprocessor(config: ViTConfig) -> Json:
    return dict(
        image_processor_type="BitImageProcessor",
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        **IMAGENET,
    )


DEFAULTS = BASE | dict(
    mlp_ratio=4,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    qkv_bias=True,
    layerscale_value=1.0,
    drop_path_rate=0.0,
    use_swiglu_ffn=False,
)
_CLASSIFIER = ("classifier.weight", "classifier.bias")
_LANDMARKS = ("embeddings.patch_embeddings.projection.weight",)
_PRESET: Json = dict(position_prefix=1, layer_scale=1.0, mask_token=True)
_ROWS = (row("small", "14:518"), row("base", "14:518"), row("large", "14:518"), row("giant", "14:518"))

DINOV2 = Family(
    name="dinov2",
    architecture="Dinov2Model",
    landmarks=_LANDMARKS,
    beside=_CLASSIFIER,
    defaults=DEFAULTS | dict(patch_size=14),
    read_config=dinov2_config,
    write_config=_config_back,
    keys=dinov2_keys,
    preprocessor=_preprocessor,
    image_processors={"BitImageProcessor": CLIP_PROCESSOR},
    resize={"transformers": "bicubic", "timm": BICUBIC_ANTIALIAS, "original": "bicubic_offset"},
    timm=lambda config: "vit_giant_patch14_dinov2" if config.mlp == "swiglu" else "vit_base_patch14_dinov2",
    presets=(  # Oquab et al. 2023 (arXiv:2304.07193)
        Presets(name="dinov2", fields=_PRESET, rows=_ROWS, sizes={"giant": GIANT_DINO}, label="{name}_{size}"),
    ),
)

DINOV2_WITH_REGISTERS = Family(
    name="dinov2_with_registers",
    architecture="Dinov2WithRegistersModel",
    landmarks=_LANDMARKS,
    beside=_CLASSIFIER,
    defaults=DEFAULTS | dict(patch_size=16, num_register_tokens=4),
    read_config=dinov2_config,
    write_config=_registers_config_back,
    keys=dinov2_keys,
    preprocessor=_preprocessor,
    resize=dict.fromkeys(("transformers", "timm", "original"), BICUBIC_ANTIALIAS),
    timm=lambda config: "vit_giant_patch14_reg4_dinov2" if config.mlp == "swiglu" else "vit_base_patch14_reg4_dinov2",
    presets=(
        Presets(  # Darcet et al. 2023 (arXiv:2309.16588)
            name="dinov2_with_registers",
            fields=_PRESET | dict(num_registers=4, position_resize=BICUBIC_ANTIALIAS),
            rows=_ROWS,
            sizes={"giant": GIANT_DINO},
            label="{name}_{size}",
        ),
    ),
)
