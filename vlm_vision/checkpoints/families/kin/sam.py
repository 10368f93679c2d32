"""The tower of SAM, and of the readers of documents that were trained from it: padded windows, decomposed relative positions."""

from dataclasses import replace
from functools import partial

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Presets, Style, WholeModel, row
from vlm_vision.checkpoints.families.fields import (
    HALF,
    IMAGENET,
    OPENAI,
    activation,
    activation_back,
    common,
    common_back,
    square,
)
from vlm_vision.checkpoints.families.sizes import SIZES
from vlm_vision.checkpoints.keys import Key, key, layer, table_to_grid
from vlm_vision.nn.config import ViTConfig

BLOCKS = BlockNames(
    stem="layers.{}", norm1="layer_norm1", qkv="attn.qkv", proj="attn.proj", norm2="layer_norm2", fc1="mlp.lin1", fc2="mlp.lin2"
)  # fmt: skip


def _config(config: Json, names: frozenset[str], *, resize: str = "native") -> ViTConfig:
    mlp_dim = config.get("mlp_dim")
    if config["use_rel_pos"] and len(set(common(config)["image_size"])) > 1:
        raise ValueError(
            f"image_size is {config['image_size']}: expected a square, which SAM's relative positions are for"
        )
    return ViTConfig(
        **common(config),
        mlp_dim=int(config["hidden_size"] * config["mlp_ratio"]) if mlp_dim is None else mlp_dim,
        mlp=activation(config),
        qkv_bias=config["qkv_bias"],
        class_token=False,
        position="learned" if config["use_abs_pos"] else "none",
        position_resize=resize,
        window=config["window_size"],
        full_blocks=tuple(sorted({i for i in config["global_attn_indexes"] if 0 <= i < config["num_hidden_layers"]})),
        window_padding=True,
        relative_position=config["use_rel_pos"],
        final_norm=False,
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        mlp_dim=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        qkv_bias=config.qkv_bias,
        use_abs_pos=config.position == "learned",
        use_rel_pos=config.relative_position,
        window_size=config.window,
        global_attn_indexes=list(config.full_blocks),
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    rows = layer("patch_embed", "patch_embed.projection") + BLOCKS.rows(config)
    if config.position == "learned":
        rows.append(key("position.table", "pos_embed", layout=table_to_grid(1, *config.grid)))
    if config.relative_position:
        for i in range(config.depth):
            for j, axis in enumerate("hw"):
                rows.append(key(f"blocks.{i}.attn.relative.{j}", f"layers.{i}.attn.rel_pos_{axis}"))
    return rows


_DEFAULTS: Json = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_channels=3, image_size=1024, patch_size=16,
    hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True, use_abs_pos=True, use_rel_pos=True, window_size=14,
    global_attn_indexes=[2, 5, 8, 11],
)  # fmt: skip


def _processor(config: ViTConfig) -> Json:
    edge = max(config.image_size)
    return dict(image_processor_type="SamImageProcessor", size={"longest_edge": edge}, pad_size=square(config))


SAM = Family(
    name="sam_vision_model",
    aliases={"sam_hq_vision_model": {}},
    whole_models=(
        WholeModel(model_type="sam", tower="sam_vision_model"),
        WholeModel(model_type="sam_hq", tower="sam_hq_vision_model"),
    ),
    architecture="SamVisionModel",
    prefix="vision_encoder.",
    landmarks=("patch_embed.projection.weight",),
    connector=("neck.",),
    defaults=_DEFAULTS | dict(mlp_ratio=4.0),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=_processor,
    image_processors={
        "SamImageProcessor": IMAGENET
        | dict(size={"longest_edge": 1024}, resample=2, do_pad=True, pad_size={"height": 1024, "width": 1024})
    },
    resize={"transformers": "native"},
    presets=(
        Presets(
            name="sam",
            fields=dict(
                class_token=False,
                position_resize="native",
                window=14,
                window_padding=True,
                relative_position=True,
                final_norm=False,
                pool="none",
            ),
            rows=(row("base", "16:1024"), row("large", "16:1024"), row("huge", "16:1024")),
            sizes={
                "base": SIZES["base"] | dict(full_blocks=(2, 5, 8, 11)),
                "large": SIZES["large"] | dict(full_blocks=(5, 11, 17, 23)),
                "huge": SIZES["huge"] | dict(full_blocks=(7, 15, 23, 31)),
            },
        ),
    ),
)
"""Kirillov et al. 2023 (arXiv:2304.02643); HQ-SAM (arXiv:2306.01567). The neck that follows is not of the tower."""


GOT_OCR2 = replace(
    SAM,
    name="got_ocr2_vision",
    aliases={"pp_chart2table_vision": {}},
    whole_models=(
        WholeModel(model_type="got_ocr2", tower="got_ocr2_vision"),
        WholeModel(model_type="pp_chart2table", tower="pp_chart2table_vision"),
    ),
    architecture="GotOcr2VisionEncoder",
    presets=(),
    prefix="",
    defaults=_DEFAULTS | dict(mlp_dim=3072),
    preprocessor=lambda config: dict(image_processor_type="GotOcr2ImageProcessor", size=square(config)),
    image_processors={
        "GotOcr2ImageProcessor": OPENAI | dict(size={"height": 384, "width": 384}, resample=3),
        "PPChart2TableImageProcessor": OPENAI | dict(size={"height": 1024, "width": 1024}, resample=3),
    },
)
"""Wei et al. 2024 (arXiv:2409.01704), and PP-Chart2Table."""

PP_FORMULANET = replace(
    GOT_OCR2,
    name="pp_formulanet_vision",
    aliases={"slanext_vision": {}},
    whole_models=(
        WholeModel(model_type="pp_formulanet", tower="pp_formulanet_vision"),
        WholeModel(model_type="slanext", tower="slanext_vision"),
    ),
    architecture="PPFormulaNetVisionModel",
    connector=("neck.", "multi_modal_projector."),
    defaults=_DEFAULTS | dict(mlp_dim=3072, image_size=512),
    preprocessor=lambda config: (
        dict(image_processor_type="CLIPImageProcessor", size=square(config), do_center_crop=False) | IMAGENET
    ),
    image_processors={},
)
"""Towers of PP-FormulaNet (arXiv:2503.18382) and SLANeXt."""

_OWN = (
    (r"^blocks\.(\d+)\.norm", r"layers.\1.layer_norm"),
    (r"^blocks\.", "layers."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
)
"""SAM's own names, under which a stage is saved, and transformers'."""


SAM_STAGE = replace(
    GOT_OCR2,
    name="unlimited_ocr_sam_vision_model",
    aliases={"deepseek_ocr2_sam_vision_model": {}},
    whole_models=(),
    architecture="UnlimitedOcrSamVisionEncoder",
    landmarks=("patch_embed.projection.weight", "patch_embed.proj.weight"),
    connector=("neck.", "proj.", "net_"),
    spellings=_OWN,
    read_config=partial(_config, resize="bicubic_antialias"),
    preprocessor=lambda config: (
        dict(image_processor_type="CLIPImageProcessor", do_center_crop=False, size=square(config)) | HALF
    ),
    image_processors={},
    resize={"transformers": "bicubic_antialias"},
)
"""The first stage of the towers of DeepSeek-OCR 2 and Unlimited-OCR, saved alone. It takes images of any size."""
