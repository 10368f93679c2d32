"""The towers of GLM-4V, GLM-OCR and GLM-5: rotary positions, RMS norms, gated perceptrons, two frames a patch."""

from dataclasses import replace

from vlm_vision.checkpoints.families.blocks import GLM_BLOCKS
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import OPENAI, gated, gated_back
from vlm_vision.checkpoints.families.vlm.qwen import patch_rows, video_config, video_config_back
from vlm_vision.checkpoints.keys import Key, key
from vlm_vision.nn.config import ViTConfig


def _facts(config: Json) -> Json:
    return dict(
        mlp=gated(config),
        norm="rms",
        norm_eps=float(config["rms_norm_eps"]),
        qkv_bias=config["attention_bias"],
        final_norm=True,
    )


def _glm4v(config: Json, names: frozenset[str]) -> ViTConfig:
    side = config["image_size"]
    if not isinstance(side, int):
        raise ValueError(f"image_size is {side!r}: expected the side of a square, as in transformers' GLM-4V")
    return video_config(
        config | {"intermediate_size": config["out_hidden_size"]},
        **_facts(config),
        image_size=(side, side),
        position="learned",
        position_resize="bicubic_sampled",
        patch_norm=True,
        proj_bias=False,
        mlp_bias=False,
    )


def _glm_ocr(config: Json, names: frozenset[str]) -> ViTConfig:
    bias = config["attention_bias"]
    return video_config(config, **_facts(config), proj_bias=bias, mlp_bias=bias, qk_norm="head")


def _glm5_next(config: Json, names: frozenset[str]) -> ViTConfig:
    return replace(_glm_ocr(config, names), mlp_limit=float(config["swiglu_limit"]))


def _back(config: ViTConfig) -> Json:
    return video_config_back(config) | dict(
        hidden_act=gated_back(config.mlp), attention_bias=config.qkv_bias, rms_norm_eps=config.norm_eps
    )


def _glm4v_back(config: ViTConfig) -> Json:
    back = _back(config)
    del back["intermediate_size"]  # of the merger there, whose output is as wide as the blocks' perceptrons
    return back | dict(out_hidden_size=config.mlp_dim, image_size=config.image_size[0])


def _glm5_next_back(config: ViTConfig) -> Json:
    if config.mlp_limit is None:
        raise ValueError("transformers cannot express a tower without a limit here: set ViTConfig.mlp_limit")
    return _back(config) | dict(swiglu_limit=config.mlp_limit)


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    rows = patch_rows(config) + GLM_BLOCKS.rows(config) + [key("norm.weight", "post_layernorm.weight")]
    if config.patch_norm:
        rows.append(key("patch_norm.weight", "post_conv_layernorm.weight"))
    if config.position == "learned":
        rows.append(key("position.table", "embeddings.position_embedding.weight", drop=1))
    return rows


def processor(name: str, config: ViTConfig) -> Json:
    """A preprocessor_config.json of GLM's class."""
    return OPENAI | dict(image_processor_type=name, patch_size=config.patch_size)


_PROCESSOR: Json = OPENAI | dict(
    size={"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000},
    resample=3,
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
)
"""What Glm4vImageProcessor and its copies do where preprocessor_config.json is silent."""

_DEFAULTS: Json = dict(
    depth=24, hidden_size=1536, hidden_act="silu", attention_bias=False, num_heads=12, in_channels=3, image_size=336,
    patch_size=14, rms_norm_eps=1e-5, spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=4096,
    intermediate_size=13696,
)  # fmt: skip

GLM4V = Family(
    name="glm4v_vision",
    whole_models=(
        WholeModel(model_type="glm4v"),
        WholeModel(model_type="glm4v_moe", tower="glm4v_moe_vision"),
        WholeModel(model_type="glm46v"),
        WholeModel(model_type="glmga"),
    ),
    aliases={"glm4v_moe_vision": {}},
    architecture="Glm4vVisionModel",
    landmarks=("patch_embed.proj.weight",),
    connector=("merger.", "downsample."),
    defaults=_DEFAULTS,
    read_config=_glm4v,
    write_config=_glm4v_back,
    keys=_keys,
    preprocessor=lambda config: processor("Glm4vImageProcessor", config),
    image_processors={f"{name}ImageProcessor": _PROCESSOR for name in ("Glm4v", "Glm46V", "Glmga")},
    resize={"transformers": "bicubic_sampled"},
)
"""Hong et al. 2025 (arXiv:2507.01006): learned and rotary positions, norms after the patch embedding and at the end."""

GLM_OCR = Family(
    name="glm_ocr_vision",
    whole_models=(WholeModel(model_type="glm_ocr"),),
    architecture="GlmOcrVisionModel",
    landmarks=GLM4V.landmarks,
    connector=GLM4V.connector,
    defaults=_DEFAULTS
    | dict(hidden_size=1024, attention_bias=True, num_heads=16, out_hidden_size=1536, intermediate_size=4096),
    read_config=_glm_ocr,
    write_config=_back,
    keys=_keys,
    preprocessor=lambda config: processor("Glm46VImageProcessor", config),
    resize={"transformers": "bicubic"},
    unresized=True,
)
"""GLM-4V's with norms of queries and keys, and without the table."""

GLM5_NEXT = replace(
    GLM_OCR,
    name="glm5_next_vision",
    whole_models=(WholeModel(model_type="glm5_next"),),
    architecture="Glm5NextVisionModel",
    defaults=GLM_OCR.defaults | dict(swiglu_limit=10.0),
    read_config=_glm5_next,
    write_config=_glm5_next_back,
    preprocessor=lambda config: processor("Glm5NextImageProcessor", config),
    image_processors={
        "Glm5NextImageProcessor": OPENAI
        | dict(
            size={"longest_edge": 1},
            resample=3,
            patch_size=14,
            merge_size=2,
            temporal_patch_size=2,
            min_image_tokens=16,
            max_image_tokens=8000,
        )
    },
)
"""GLM-OCR's with limits in the gated perceptrons."""
