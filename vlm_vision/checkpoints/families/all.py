"""The one tuple of families, and what follows from it."""

from vlm_vision.checkpoints.families.aimv2 import AIMV2
from vlm_vision.checkpoints.families.clip import CLIP
from vlm_vision.checkpoints.families.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from vlm_vision.checkpoints.families.dinov3 import DINOV3
from vlm_vision.checkpoints.families.family import Family, Json, WholeModel
from vlm_vision.checkpoints.families.idefics import IDEFICS3, SMOLVLM
from vlm_vision.checkpoints.families.siglip import SIGLIP, SIGLIP2
from vlm_vision.checkpoints.families.tips import TIPSV2
from vlm_vision.checkpoints.families.vit import DEIT, DINO, IJEPA, MAE, VIT
from vlm_vision.checkpoints.families.vlm.blip import BLIP, BLIP2
from vlm_vision.checkpoints.families.vlm.clip_like import BRIDGETOWER, IDEFICS, OWLVIT
from vlm_vision.checkpoints.families.vlm.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_5, QWEN3_VL

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
    QWEN3_VL,
    QWEN3_5,
    BLIP,
    BLIP2,
    OWLVIT,
    IDEFICS,
    BRIDGETOWER,
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

REFUSED: dict[str, str] = {}
"""model_type of a tower, or of a whole model -> why it has none that `vlm_vision.nn.vit` can be."""
