"""RADIO: several class tokens and registers without positions; a table that is resized to the longer side and cropped."""

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import (
    BASE,
    OPENAI,
    activation,
    activation_back,
    common,
    common_back,
    ratio,
    square,
)
from vlm_vision.checkpoints.keys import PATCH_ROW, Key, key
from vlm_vision.nn.config import ViTConfig


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    width, tokens = config["hidden_size"], config["num_cls_tokens"]
    side = config["max_img_size"] // config["patch_size"]
    hidden = int(width * config["mlp_ratio"])
    gated = config["use_swiglu_ffn"]
    chosen = [0, 1] if config.get("summary_idxs") is None else config["summary_idxs"]
    if not tokens:
        raise ValueError("num_cls_tokens is 0: expected at least one")
    return ViTConfig(
        **common(config),
        mlp_dim=(int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
        mlp="swiglu" if gated else activation(config),
        head_width=config.get("head_dim") or 0,
        qkv_bias=config["qkv_bias"],
        patch_bias=False,
        num_registers=tokens - 1 + config["num_registers"],
        position_grid=(side, side),
        position_resize="bilinear_crop",
        layer_scale=float(config["layerscale_value"]) if "encoder.layer.0.layer_scale1.lambda1" in names else None,
        drop_path=float(config["drop_path_rate"]),
        drop_path_ramp=False,
        final_norm=False,
        pool="prefix" if chosen else "none",
        pool_tokens=tuple(range(tokens)[i] for i in chosen),
    )


def _config_back(config: ViTConfig) -> Json:
    gated = config.mlp == "swiglu"
    hidden = config.mlp_dim * 3 // 2 if gated else config.mlp_dim
    tokens = max((1, *(i + 1 for i in config.pool_tokens)))
    return common_back(config) | dict(
        mlp_ratio=ratio(hidden, config.embed_dim),
        hidden_act="gelu" if gated else activation_back(config.mlp),
        use_swiglu_ffn=gated,
        qkv_bias=config.qkv_bias,
        num_cls_tokens=tokens,
        num_registers=config.num_prefix_tokens - tokens,
        max_img_size=config.table_grid[0] * config.patch_size,
        layerscale_value=1.0 if config.layer_scale is None else config.layer_scale,
        drop_path_rate=config.drop_path,
        summary_idxs=list(config.pool_tokens),
        **({"head_dim": config.head_width} if config.head_width else {}),
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    names = BlockNames(
        stem="encoder.layer.{}",
        norm1="norm1",
        qkv="attention.qkv" if style == "memory" else ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        proj="attention.o_proj",
        norm2="norm2",
        fc1=("mlp.gate_proj", "mlp.up_proj") if config.mlp == "swiglu" else "mlp.fc1",
        fc2="mlp.down_proj" if config.mlp == "swiglu" else "mlp.fc2",
        scale1="layer_scale1.lambda1",
        scale2="layer_scale2.lambda1",
    )
    prefix = ("cls_token", "registers") if config.num_registers else "cls_token"
    return [
        key("patch_embed.weight", "embeddings.patch_projection.weight", layout=PATCH_ROW),
        key(prefix, "embeddings.cls_register_token", drop=1),
        key("position.table", "embeddings.position_embedding"),
        *names.rows(config),
    ]


_HUB = (
    (r"^radio_model\.", ""),
    (r"^model\.patch_generator\.video_embedder\.", "embeddings.video_patch_projection."),
    (r"^model\.patch_generator\.embedder\.", "embeddings.patch_projection."),
    (r"^model\.patch_generator\.pos_embed$", "embeddings.position_embedding"),
    (r"^model\.patch_generator\.cls_token\.token$", "embeddings.cls_register_token"),
    (r"^model\.blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.", ".attention."),
)
"""Names of the public files, and transformers'."""


RADIO = Family(
    name="radio",
    whole_models=(
        WholeModel(
            model_type="nemotron_h_omni",
            tower="radio",
            always=True,
            preprocessor=dict(image_processor_type="NemotronH_Omni_Reasoning_V3ImageProcessor"),
        ),
    ),
    architecture="RadioModel",
    landmarks=("embeddings.cls_register_token", "radio_model.model.patch_generator.cls_token.token"),
    connector=("embeddings.video_patch_projection.", "input_conditioner.", "summary_idxs"),
    buffers=("summary_idxs",),
    memory_mark=".attention.qkv.",  # here the second layout is the one of the public files
    spellings=_HUB,
    defaults=BASE
    | dict(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=16,
        mlp_ratio=4.0,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
        use_swiglu_ffn=False,
        qkv_bias=True,
        layerscale_value=1.0,
        patch_size=16,
        max_img_size=2048,
        num_cls_tokens=3,
        num_registers=7,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(
        image_processor_type="CLIPImageProcessor", size=square(config), do_center_crop=False, do_normalize=False
    ),
    class_row=False,
    pixel_statistics=("input_conditioner.norm_mean", "input_conditioner.norm_std"),
    image_processors={
        "NemotronH_Omni_Reasoning_V3ImageProcessor": OPENAI
        | dict(
            patch_size=16,
            downsample_ratio=0.5,
            min_num_patches=1024,
            max_num_patches=13312,
            max_model_len=16384,
            resample=3,
            kernel="float",
        ),
    },
    resize={"transformers": "bilinear_crop"},
)
"""Ranzinger et al. 2023 (arXiv:2312.06709)."""
