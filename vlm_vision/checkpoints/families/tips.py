"""TIPSv2: DINOv2 with LayerScale and one register, which was trained as a second class token."""

from dataclasses import replace

from vlm_vision.checkpoints.families.dinov2 import DEFAULTS, dinov2_config, dinov2_keys, layer_scale, mlp_dim
from vlm_vision.checkpoints.families.family import Family, Json, Presets, Style, WholeModel, row
from vlm_vision.checkpoints.families.fields import activation_back, blocks, common_back, square
from vlm_vision.checkpoints.families.sizes import GIANT_DINO
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig

_RESIZE = "bilinear_antialias"


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    masked = not names.isdisjoint({"mask_token", "embeddings.mask_token"})
    return replace(dinov2_config(config, names), mask_token=masked, position_resize=_RESIZE)


def _config_back(config: ViTConfig) -> Json:
    swiglu, width = config.mlp == "swiglu", config.embed_dim
    ratio = (config.mlp_dim * 3 / 2 if swiglu else config.mlp_dim) / width
    fits = [near for near in (4, ratio, ratio + 1e-6) if mlp_dim(width, near, swiglu) == config.mlp_dim]
    return common_back(config) | dict(
        mlp_ratio=fits[0] if fits else ratio,
        use_swiglu_ffn=swiglu,
        hidden_act="gelu" if swiglu else activation_back(config.mlp),
        qkv_bias=config.qkv_bias,
        layerscale_value=layer_scale(config),
        drop_path_rate=config.drop_path,
        num_register_tokens=config.num_registers,
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    if style == "memory":
        return dinov2_keys(config, style)
    keys = [
        key("cls_token", "cls_token"),
        key("position.table", "pos_embed"),
        *layer("patch_embed", "patch_embed.proj", bias=config.patch_bias),
        *layer("norm", "norm"),
    ]
    if config.num_registers:
        keys.append(key("registers", "register_tokens"))
    if config.mask_token:
        keys.append(key("mask_token", "mask_token", drop=1))
    first, second = ("w12", "w3") if config.mlp == "swiglu" else ("c_fc", "c_proj")
    return keys + blocks(
        config,
        lambda i: [
            *layer(f"blocks.{i}.norm1", f"blocks.{i}.norm1"),
            *layer(f"blocks.{i}.attn.qkv", f"blocks.{i}.attn.qkv", bias=config.qkv_bias),
            *layer(f"blocks.{i}.attn.proj", f"blocks.{i}.attn.proj"),
            key(f"blocks.{i}.residual1.scale", f"blocks.{i}.ls1.gamma"),
            *layer(f"blocks.{i}.norm2", f"blocks.{i}.norm2"),
            *layer(f"blocks.{i}.mlp.fc1", f"blocks.{i}.mlp.{first}"),
            *layer(f"blocks.{i}.mlp.fc2", f"blocks.{i}.mlp.{second}"),
            key(f"blocks.{i}.residual2.scale", f"blocks.{i}.ls2.gamma"),
        ],
    )


_SPELLINGS = ((r"^(blocks\.\d+\.mlp\.)fc1\.", r"\1c_fc."), (r"^(blocks\.\d+\.mlp\.)fc2\.", r"\1c_proj."))
"""transformers reads the MLP of the public layout under two names and writes the second."""


TIPSV2 = Family(
    name="tipsv2_vision_model",
    whole_models=(WholeModel(model_type="tipsv2", checked=True),),
    siblings=("text_encoder.", "text_model.", "temperature"),
    architecture="Tipsv2VisionModel",
    landmarks=("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"),
    spellings=_SPELLINGS,
    defaults=DEFAULTS | dict(patch_size=14, image_size=448, num_register_tokens=1),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="Tipsv2ImageProcessor", size=square(config)),
    image_processors={"Tipsv2ImageProcessor": dict(size=[448, 448], resample=2, do_normalize=False, kernel="torch")},
    resize={"transformers": _RESIZE, "timm": "bicubic_antialias"},
    timm=lambda config: f"vit_{'giant' if config.mlp == 'swiglu' else 'base'}_patch14_reg1_tipsv2",
    presets=(
        Presets(
            name="tipsv2",
            fields=dict(
                position_prefix=1,
                num_registers=1,
                mask_token=True,
                layer_scale=1.0,
                position_resize=_RESIZE,
            ),
            rows=(row("base", "14:448"), row("large", "14:448"), row("so400m", "14:448"), row("giant", "14:448")),
            sizes={"giant": GIANT_DINO},
        ),
    ),
)
