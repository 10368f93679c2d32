"""The towers of Idefics2, Idefics3 and SmolVLM: a SigLIP without head, whose positions are looked up by fractions."""

from dataclasses import replace

from vlm_vision.checkpoints.families.family import Family, Json, WholeModel
from vlm_vision.checkpoints.families.fields import BICUBIC_ANTIALIAS, HALF, square
from vlm_vision.checkpoints.families.siglip import DEFAULTS, LANDMARK, siglip_config, siglip_config_back, siglip_keys
from vlm_vision.nn.config import ViTConfig


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    return replace(siglip_config(config | {"vision_use_head": False}, names), position_resize="bucket")


def _config_back(config: ViTConfig) -> Json:
    back = siglip_config_back(config)
    del back["vision_use_head"]
    return back


_TILES: Json = HALF | dict(max_image_size={"longest_edge": 364}, resample=1)

IDEFICS3 = Family(
    name="idefics3_vision",
    aliases={"idefics2_vision": dict(hidden_size=768, num_attention_heads=12)},
    whole_models=(
        WholeModel(
            model_type="idefics2",
            checked=True,
            tower="idefics2_vision",
            preprocessor={"image_processor_type": "Idefics2ImageProcessor"},
        ),
        WholeModel(model_type="idefics3", checked=True),
        WholeModel(model_type="aria"),
    ),
    siblings=("text_model.", "connector.", "model.text_model.", "model.connector.", "lm_head."),
    architecture="Idefics3VisionTransformer",
    landmarks=(LANDMARK,),
    defaults=DEFAULTS | dict(hidden_size=1152, num_attention_heads=16, patch_size=32),
    read_config=_config,
    write_config=_config_back,
    keys=siglip_keys,
    preprocessor=lambda config: dict(image_processor_type="SiglipImageProcessor", size=square(config)),
    image_processors={
        "Idefics2ImageProcessor": HALF | dict(size=dict(shortest_edge=378, longest_edge=980), resample=2),
        "Idefics3ImageProcessor": _TILES,
        "UltraVBertImageProcessor": _TILES | dict(max_image_size={"longest_edge": 512}, kernel="torch"),
        "AriaImageProcessor": HALF | dict(max_image_size=980, min_image_size=336, resample=3),
    },
    resize={"transformers": "bucket", "timm": BICUBIC_ANTIALIAS, "original": "zoom"},
    timm=lambda config: "vit_base_patch16_siglip_224",
)
"""Also Idefics2 (Laurencon et al. 2024, arXiv:2405.02246), whose tower and positions are the same."""

SMOLVLM = replace(
    IDEFICS3,
    name="smolvlm_vision",
    aliases={},
    whole_models=(WholeModel(model_type="smolvlm", checked=True),),
    architecture="SmolVLMVisionTransformer",
    image_processors={"SmolVLMImageProcessor": _TILES},
)

PHI4 = replace(
    IDEFICS3,
    name="phi4_multimodal_vision",
    aliases={},
    whole_models=(WholeModel(model_type="phi4_multimodal"),),
    architecture="Phi4MultimodalVisionModel",
    defaults=DEFAULTS
    | dict(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=448,
        patch_size=14,
    ),
    read_config=lambda config, names: replace(siglip_config(config, names), position_resize="bucket"),
    write_config=_config_back,
    preprocessor=lambda config: dict(image_processor_type="Phi4MultimodalImageProcessor", size=square(config)),
    image_processors={"Phi4MultimodalImageProcessor": HALF | dict(size=[448, 448], resample=3, kernel="torch")},
)
"""Phi-4 multimodal (arXiv:2503.01743): with SigLIP's head."""
