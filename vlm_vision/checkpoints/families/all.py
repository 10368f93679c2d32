"""The one tuple of families, and what follows from it."""

from collections.abc import Mapping

from projectors.names import did_you_mean
from vlm_vision.checkpoints.families.aimv2 import AIMV2
from vlm_vision.checkpoints.families.clip import CLIP
from vlm_vision.checkpoints.families.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from vlm_vision.checkpoints.families.dinov3 import DINOV3
from vlm_vision.checkpoints.families.family import Family, Json, WholeModel
from vlm_vision.checkpoints.families.idefics import IDEFICS3, PHI4, SMOLVLM
from vlm_vision.checkpoints.families.kin.blip import BLIP, BLIP2
from vlm_vision.checkpoints.families.kin.clip_like import BRIDGETOWER, IDEFICS, OWLVIT
from vlm_vision.checkpoints.families.kin.hunyuan import HUNYUAN_VL, HY_V4_VL
from vlm_vision.checkpoints.families.kin.internvl import INTERNVL
from vlm_vision.checkpoints.families.kin.llama4 import LLAMA4
from vlm_vision.checkpoints.families.kin.minicpm import MINICPM
from vlm_vision.checkpoints.families.kin.molmo import MOLMO2
from vlm_vision.checkpoints.families.kin.ovis import OVIS2
from vlm_vision.checkpoints.families.kin.radio import RADIO
from vlm_vision.checkpoints.families.kin.sam import GOT_OCR2, PP_FORMULANET, SAM, SAM_STAGE
from vlm_vision.checkpoints.families.kin.sam3 import SAM3
from vlm_vision.checkpoints.families.kin.siglip_like import COSMOS3_EDGE, GLM_IMAGE, GRANITE_DOCLING, JANUS
from vlm_vision.checkpoints.families.siglip import SIGLIP, SIGLIP2
from vlm_vision.checkpoints.families.tips import TIPSV2
from vlm_vision.checkpoints.families.vit import DEIT, DINO, IJEPA, MAE, VIT
from vlm_vision.checkpoints.families.vlm.ernie import DOTS3, ERNIE4_5_VL
from vlm_vision.checkpoints.families.vlm.gemma4 import GEMMA4
from vlm_vision.checkpoints.families.vlm.glm import GLM4V, GLM5_NEXT, GLM_OCR
from vlm_vision.checkpoints.families.vlm.inkling import INKLING2
from vlm_vision.checkpoints.families.vlm.kimi import KIMI_K25
from vlm_vision.checkpoints.families.vlm.minimax import MINIMAX_M3
from vlm_vision.checkpoints.families.vlm.muse import MUSE
from vlm_vision.checkpoints.families.vlm.paddleocr import PADDLEOCR_VL, VIDEO_LLAMA_3
from vlm_vision.checkpoints.families.vlm.pix2struct import KOSMOS_2_5, PIX2STRUCT
from vlm_vision.checkpoints.families.vlm.pixtral import PIXTRAL
from vlm_vision.checkpoints.families.vlm.qwen import (
    EXAONE4_5,
    QWEN2_5_OMNI,
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_5,
    QWEN3_OMNI,
    QWEN3_VL,
)
from vlm_vision.checkpoints.families.vlm.step import STEP3

ENCODERS: tuple[Family, ...] = (
    VIT,
    DEIT,
    MAE,
    IJEPA,
    DINO,
    DINOV2,
    DINOV2_WITH_REGISTERS,
    DINOV3,
    TIPSV2,
    CLIP,
    SIGLIP,
    SIGLIP2,
    IDEFICS3,
    SMOLVLM,
    AIMV2,
)
"""Families that are published on their own."""

TOWERS: tuple[Family, ...] = (
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN2_5_OMNI,
    EXAONE4_5,
    QWEN3_VL,
    QWEN3_OMNI,
    QWEN3_5,
    BLIP,
    BLIP2,
    OWLVIT,
    IDEFICS,
    BRIDGETOWER,
    PHI4,
    JANUS,
    GLM_IMAGE,
    GRANITE_DOCLING,
    COSMOS3_EDGE,
    HUNYUAN_VL,
    HY_V4_VL,
    MOLMO2,
    INTERNVL,
    OVIS2,
    RADIO,
    PIXTRAL,
    LLAMA4,
    STEP3,
    INKLING2,
    MUSE,
    KIMI_K25,
    MINIMAX_M3,
    GEMMA4,
    SAM,
    GOT_OCR2,
    PP_FORMULANET,
    SAM_STAGE,
    SAM3,
    MINICPM,
    PIX2STRUCT,
    KOSMOS_2_5,
    GLM4V,
    GLM_OCR,
    GLM5_NEXT,
    ERNIE4_5_VL,
    DOTS3,
    PADDLEOCR_VL,
    VIDEO_LLAMA_3,
)
"""Families whose towers come inside vision-language models."""

ALL: tuple[Family, ...] = (*ENCODERS, *TOWERS)

FAMILIES: dict[str, Family] = {family.name: family for family in ALL}
"""By name."""

MODEL_TYPES: dict[str, tuple[Family, Json]] = {
    model_type: (family, changed)
    for family in ALL
    if not family.written_as
    for model_type, changed in ({family.name: {}} | dict(family.aliases)).items()
}
"""model_type of a tower of transformers -> its family, and defaults that differ from the family's."""

WHOLE_MODELS: dict[str, tuple[Family, WholeModel]] = {
    whole.model_type: (family, whole) for family in ALL for whole in family.whole_models
}
"""model_type of a whole model -> the family of its tower, unless its vision_config names another."""

SIBLINGS: tuple[str, ...] = tuple(sorted({prefix for family in ALL for prefix in family.siblings}))
"""Names, by prefix, of the other parts of whole models."""

_CONVOLUTIONAL = "its tower is convolutional ({}): there is no vision transformer to load"
_HIERARCHICAL = "its tower is hierarchical ({}): there is no vision transformer of one width to load"
_PE = "its tower is a Perception Encoder of timm ({}), inside TimmWrapperModel: expected a tower that transformers itself has"
_TILES = "its tower takes the tiles of an image together, in blocks with gates: expected a tower that takes images one by one"
_TWO = "its tower is a SAM whose feature map a CLIP reads: expected one stack of blocks; its sam_encoder loads, saved alone"

REFUSED: dict[str, str] = {
    "mllama": _TILES,
    "perception_lm": _PE.format("vit_pe_lang and vit_pe_core"),
    "pe_video_encoder": _PE.format("vit_pe_core"),
    "pe_video": _PE.format("vit_pe_core"),
    "mllama_vision_model": _TILES,
    "unlimited_ocr": _TWO,
    "unlimited_ocr_vision": _TWO,
    "unlimited_ocr_vision_encoder": _TWO,
    "lfm3_vl_vision": "some of its blocks are gated convolutions, no attention: no vision transformer of equal blocks to load",
    "align": _CONVOLUTIONAL.format("EfficientNet"),
    "align_vision_model": _CONVOLUTIONAL.format("EfficientNet"),
    "apertus1p5": _CONVOLUTIONAL.format("a tokenizer that gives discrete codes"),
    "apertus1p5_vision_tokenizer": _CONVOLUTIONAL.format("a tokenizer that gives discrete codes"),
    "edgetam": _CONVOLUTIONAL.format("RepViT of timm"),
    "edgetam_vision_model": _CONVOLUTIONAL.format("RepViT of timm"),
    "edgetam_video": _CONVOLUTIONAL.format("RepViT of timm"),
    "fast_vlm": _CONVOLUTIONAL.format("FastViT of timm"),
    "gemma3n": _CONVOLUTIONAL.format("MobileNetV5 of timm"),
    "gemma3n_vision": _CONVOLUTIONAL.format("MobileNetV5 of timm"),
    "florence2": _HIERARCHICAL.format("DaViT, with attention between channels"),
    "florence_vision": _HIERARCHICAL.format("DaViT, with attention between channels"),
    "sam2": _HIERARCHICAL.format("Hiera"),
    "sam2_video": _HIERARCHICAL.format("Hiera"),
    "sam2_vision_model": _HIERARCHICAL.format("Hiera"),
    "sam2_hiera_det_model": _HIERARCHICAL.format("Hiera"),
    "groupvit": _HIERARCHICAL.format("GroupViT, which joins patches into groups between its stages"),
    "groupvit_vision_model": _HIERARCHICAL.format("GroupViT, which joins patches into groups between its stages"),
    "inkling_mm_model": "its patches go through perceptrons alone: there is no vision transformer to load",
    "inkling_vision": "its patches go through perceptrons alone: there is no vision transformer to load",
    "gemma4_unified": "its patches go straight into the language model: there is no vision tower to load",
    "gemma4_unified_vision": "its patches go straight into the language model: there is no vision tower to load",
    "videoprism": "its tower is two stacks, over space and then over time: expected one stack of blocks",
    "videoprism_vision_model": "its tower is two stacks, over space and then over time: expected one stack of blocks",
    "deepseek_ocr2": "its tower is SAM's with the layers of a language model behind it: expected one stack of blocks",
    "deepseek_ocr2_vision": "its tower is SAM's with the layers of a language model behind it: expected one stack of blocks",
    "xclip": "the blocks of its tower exchange messages between frames: expected those of CLIP",
    "xclip_vision_model": "the blocks of its tower exchange messages between frames: expected those of CLIP",
}
"""model_type of a tower, or of a whole model -> why it has none that `vlm_vision.nn.vit` can be."""

RESIZE_BY_FAMILY: dict[str, Mapping[str, str]] = {name: family.resize for name, family in FAMILIES.items()}
"""family -> reference -> rule in `vlm_vision.nn.position.RESIZE`. DeiT, MAE, open_clip and big_vision resize when they load,
the others for each image; the numbers are the same."""


def resize_rule(family: str, reference: str) -> str:
    """The rule of `reference` for `family`.

    Raises:
        ValueError: the reference has none for that family.
    """
    rules = RESIZE_BY_FAMILY[family]
    if reference not in rules:
        hint = did_you_mean(reference, rules)
        raise ValueError(
            f"reference {reference!r} has no position resize for {family}: expected one of {', '.join(rules)}{hint}"
        )
    return rules[reference]
