"""HuggingFace folders: `config.json` and weights of transformers, both ways.

Weights of a whole model (CLIP, SigLIP, LLaVA) are read by prefix; only the vision part is touched.

Documented exceptions to "every stored weight is used": `position_ids` (an index buffer of old CLIP and SigLIP files)
and the `SIBLINGS` of the vision part in a whole model.
"""

from vlm_vision.checkpoints.hf_clip import CLIP, SIGLIP
from vlm_vision.checkpoints.hf_family import Family
from vlm_vision.checkpoints.hf_vit import DINOV2, DINOV2_WITH_REGISTERS, VIT
from vlm_vision.config import ViTConfig

FAMILIES: dict[str, Family] = {
    "vit": VIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2_WITH_REGISTERS,
    "clip_vision_model": CLIP,
    "siglip_vision_model": SIGLIP,
}
"""model_type of a vision tower -> how to read it."""

WHOLE_MODELS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "llava": "clip_vision_model"}
"""model_type of a whole model -> the family of its vision part, unless its vision_config says another."""

SIBLINGS = (
    "text_model.", "text_projection.", "logit_scale", "logit_bias",  # CLIP, SigLIP
    "language_model.", "model.language_model.", "multi_modal_projector.", "model.multi_modal_projector.",
    "lm_head.", "image_newline", "model.image_newline",  # LLaVA
)  # fmt: skip
"""Names, by prefix, of the other parts of a whole model."""


def public_layout(family: str, config: ViTConfig) -> tuple[str, str]:
    """(prefix of the tower's weights on disk, class that reads them) in the layout of the public hub."""
    architecture = FAMILIES[family].architecture
    prefix = "vision_model." if family.endswith("_vision_model") else ""
    if config.pool_head == "linear":
        architecture += "WithProjection"
    if config.num_classes:
        architecture = architecture.replace("VisionModel", "Model").replace("Model", "ForImageClassification")
        prefix = prefix or f"{family}."
    return prefix, architecture
