"""The towers of MiniCPM-V 4.6 and 4.7 and of MiniCPM-OCR: a SigLIP that merges each 2 x 2 patches after one of its blocks."""

from dataclasses import replace

from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import HALF
from vlm_vision.checkpoints.families.siglip import DEFAULTS, LANDMARK, siglip_config, siglip_config_back, siglip_keys
from vlm_vision.checkpoints.keys import Key, layer
from vlm_vision.nn.config import ViTConfig


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    if list(config["window_kernel_size"]) != [2, 2]:
        raise ValueError(
            f"window_kernel_size is {list(config['window_kernel_size'])}: expected [2, 2], a merger of 2 x 2"
        )
    vit = replace(siglip_config(config | {"vision_use_head": False}, names), position_resize="bucket")
    after = config["insert_layer_id"]
    if config["downsample_mode"] == "4x" or not 0 <= after < vit.depth:
        return vit
    return replace(vit, merge_after=after, merge_dim=4 * vit.mlp_dim)


def _config_back(config: ViTConfig) -> Json:
    back = siglip_config_back(config) | dict(insert_layer_id=config.merge_after, window_kernel_size=[2, 2])
    del back["vision_use_head"]
    return back


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    rows = siglip_keys(config)
    if config.merge_after >= 0:
        rows += layer("merge.norm1", "vit_merger.layer_norm1")
        rows += layer("merge.attn.qkv", tuple(f"vit_merger.self_attn.{part}_proj" for part in "qkv"))
        rows += layer("merge.attn.proj", "vit_merger.self_attn.out_proj")
        for ours, theirs in (("norm2", "pre_norm"), ("fc1", "linear_1"), ("fc2", "linear_2")):
            rows += layer(f"merge.{ours}", f"vit_merger.{theirs}")
    return rows


_IMAGES: Json = HALF | dict(resample=3, scale_resolution=448, patch_size=14)
_MODES = {"minicpmv4_6": "16x", "minicpmv4_7": "16x", "minicpm_ocr": "4x"}
"""Whole model -> its usual downsample_mode."""

MINICPM = Family(
    name="minicpmv4_6_vision",
    aliases={f"{name}_vision": {} for name in ("minicpmv4_7", "minicpm_ocr")},
    whole_models=tuple(
        WholeModel(
            model_type=name, tower=f"{name}_vision", outer_fields={"insert_layer_id": 6, "downsample_mode": mode}
        )
        for name, mode in _MODES.items()
    ),
    architecture="MiniCPMV4_6VisionModel",
    landmarks=(LANDMARK,),
    connector=("vit_merger.",),
    defaults=DEFAULTS | dict(insert_layer_id=6, window_kernel_size=[2, 2], downsample_mode="16x"),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(
        image_processor_type="MiniCPMV4_6ImageProcessor",
        patch_size=config.patch_size,
        downsample_mode="4x" if config.merge_after < 0 else "16x",
    ),
    image_processors={
        "MiniCPMV4_6ImageProcessor": _IMAGES | dict(downsample_mode="16x"),
        "MiniCPMOcrImageProcessor": _IMAGES | dict(downsample_mode="4x", kernel="torch"),
    },
    resize={"transformers": "bucket"},
)
"""The merger inside runs after the block insert_layer_id. A whole model whose downsample_mode is "4x", the default of
MiniCPM-OCR, calls its tower without it."""
