"""Public models whose towers are of families that come inside vision-language models: one row each, as in their config.json."""

from dataclasses import dataclass
from typing import Any

from vlm_vision.checkpoints.families.all import FAMILIES
from vlm_vision.nn.config import ViTConfig


@dataclass(frozen=True)
class Published:
    """The tower of a public model."""

    group: str
    """Name that the models of one kind share."""
    size: str
    """"" for the only tower of its kind."""
    family: str
    """Name in `vlm_vision.checkpoints.families.all.FAMILIES`."""
    id: str
    """A public checkpoint that contains the tower."""
    fields: dict[str, Any]
    """Fields of its config.json that differ from the defaults of transformers."""

    @property
    def name(self) -> str:
        """Name of the preset."""
        return f"{self.group}_{self.size}" if self.size else self.group

    @property
    def config(self) -> ViTConfig:
        family = FAMILIES[self.family]
        return family.read_config(family.defaults | self.fields, frozenset())


def _row(group: str, size: str, family: str, id: str, **fields: Any) -> Published:
    return Published(group, size, family, id, fields)


def _qwen2_5(size: str, mlp: int) -> Published:
    fields = dict(hidden_size=1280, intermediate_size=mlp)
    return _row("qwen2_5_vl", size, "qwen2_5_vl_vision", f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct", **fields)


def _qwen3(size: str, id: str, language: int, **fields: Any) -> Published:
    return _row("qwen3_vl", size, "qwen3_vl_vision", f"Qwen/Qwen3-VL-{id}-Instruct", out_hidden_size=language, **fields)


_SO400M = dict(hidden_size=1152, num_hidden_layers=27, num_attention_heads=16, intermediate_size=4304)
_QWEN3_SMALL = dict(
    hidden_size=1024, depth=24, intermediate_size=4096, deepstack_visual_indexes=[5, 11, 17]
)  # of the models up to 4B

PUBLISHED: tuple[Published, ...] = (
    _row("qwen2_vl", "", "qwen2_vl_vision", "Qwen/Qwen2-VL-7B-Instruct"),  # one tower for 2B, 7B and 72B
    _qwen2_5("3b", 3420),
    _qwen2_5("7b", 3420),
    _qwen2_5("32b", 3456),
    _qwen2_5("72b", 3456),
    _row("qwen2_5_omni", "7b", "qwen2_5_omni_vision_encoder", "Qwen/Qwen2.5-Omni-7B", hidden_size=1280),
    _qwen3("2b", "2B", 2048, **_QWEN3_SMALL),
    _qwen3("4b", "4B", 2560, **_QWEN3_SMALL),
    _qwen3("8b", "8B", 4096),
    _qwen3("32b", "32B", 5120),
    _qwen3("30b_a3b", "30B-A3B", 2048),
    _qwen3("235b_a22b", "235B-A22B", 4096),
    _row(
        "qwen3_omni", "30b_a3b", "qwen3_omni_moe_vision_encoder", "Qwen/Qwen3-Omni-30B-A3B-Instruct", out_hidden_size=2048
    ),
    _row("qwen3_5", "27b", "qwen3_5_vision", "Qwen/Qwen3.5-27B"),
    _row("internvl3", "300m", "internvl_vision", "OpenGVLab/InternVL3-8B-hf", attention_bias=True),
    _row(
        "internvl3", "6b", "internvl_vision", "OpenGVLab/InternVL3-38B-hf", hidden_size=3200, num_hidden_layers=45,
        num_attention_heads=25, intermediate_size=12800, norm_type="rms_norm", use_qk_norm=True,
    ),
    _row("pixtral", "12b", "pixtral", "mistral-community/pixtral-12b", hidden_act="silu"),
    _row(
        "mistral_small_3_1", "24b", "pixtral", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", hidden_act="silu",
        image_size=1540, patch_size=14,
    ),
    _row("glm4_1v", "9b", "glm4v_vision", "zai-org/GLM-4.1V-9B-Thinking"),
    _row("glm_ocr", "", "glm_ocr_vision", "zai-org/GLM-OCR"),
    _row("kimi_k25", "", "kimi_k25_vision", "moonshotai/Kimi-K2.5"),
    _row(
        "gemma3", "4b", "siglip_vision_model", "google/gemma-3-4b-it", **_SO400M, image_size=896, patch_size=14,
        vision_use_head=False,
    ),  # one tower for 4B, 12B and 27B
    _row("gemma4", "150m", "gemma4_vision", "google/gemma-4-e2b-it", use_clipped_linears=True),
    _row("gemma4", "550m", "gemma4_vision", "google/gemma-4-31b-it", **_SO400M, num_key_value_heads=16, head_dim=72),
    _row(
        "llama4", "", "llama4_vision_model", "meta-llama/Llama-4-Scout-17B-16E", hidden_size=1408, num_hidden_layers=34,
        num_attention_heads=16, intermediate_size=5632, image_size=336, patch_size=14,
    ),
    _row("minicpm_v_4_6", "", "minicpmv4_6_vision", "openbmb/MiniCPM-V-4.6", **_SO400M, image_size=980, patch_size=14),
    _row("radio_v4", "huge", "radio", "nvidia/C-RADIOv4-H"),
    _row("sam3", "", "sam3_vit_model", "facebook/sam3"),
    _row("paddleocr_vl", "", "paddleocr_vl_vision", "PaddlePaddle/PaddleOCR-VL"),
    _row("video_llama_3", "2b", "video_llama_3_vision", "lkhl/VideoLLaMA3-2B-Image-HF", **_SO400M, patch_size=14),
    _row("molmo2", "8b", "molmo2_vision", "allenai/Molmo2-8B"),
    _row("ernie4_5_vl", "28b_a3b", "ernie4_5_vl_moe_vision", "baidu/ERNIE-4.5-VL-28B-A3B-PT"),
    _row("minimax_m3", "", "minimax_m3_vl_vision", "MiniMaxAI/MiniMax-M3"),
    _row("step3_7", "flash", "step3p5_vision", "stepfun-ai/Step-3.7-Flash"),
    _row("inkling2", "small", "inkling2_vision", "thinkingmachines/Inkling-2-Small-MXFP8"),
    _row("muse_glimmer", "30b", "muse_glimmer_vision", "meta-models/Muse-Glimmer-30B"),
    _row("phi4_multimodal", "", "phi4_multimodal_vision", "microsoft/Phi-4-multimodal-instruct"),
    _row("blip2", "", "blip_2_vision_model", "Salesforce/blip2-opt-2.7b"),
    _row("idefics2", "8b", "idefics3_vision", "HuggingFaceM4/idefics2-8b", **_SO400M, image_size=980, patch_size=14),
    _row("idefics3", "8b", "idefics3_vision", "HuggingFaceM4/Idefics3-8B-Llama3", **_SO400M, image_size=364, patch_size=14),
    _row("smolvlm", "2b", "smolvlm_vision", "HuggingFaceTB/SmolVLM-Instruct", **_SO400M, image_size=384, patch_size=14),
)  # fmt: skip
"""A row without fields is of transformers' defaults, which its documentation names the model for."""
