"""The towers of PaddleOCR-VL and VideoLLaMA 3: SigLIP's blocks with rotary positions, native resolution."""

from vlm_vision.checkpoints.families.blocks import SIGLIP_BLOCKS
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import HALF, OPENAI, activation, activation_back
from vlm_vision.checkpoints.families.rotary import rope_back
from vlm_vision.checkpoints.families.vlm.qwen import video_config
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig


def siglip_names(config: Json, **facts) -> ViTConfig:
    """The fields of a tower of native resolution under SigLIP's names; its patches span one frame."""
    names = {"depth": "num_hidden_layers", "num_heads": "num_attention_heads", "in_channels": "num_channels"}
    config = config | {ours: config[theirs] for ours, theirs in names.items()} | {"temporal_patch_size": 1}
    return video_config(config, final_norm=True, **facts)


def siglip_names_back(config: ViTConfig) -> Json:
    """The inverse of `siglip_names`."""
    if config.rope is None or config.temporal_patch != 1:
        raise ValueError("transformers cannot express a tower without rotary positions, or with temporal patches, here")
    return dict(
        patch_size=config.patch_size,
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        num_channels=config.channels,
        rope_parameters=rope_back(config),
    )


def _read(config: Json, names: frozenset[str]) -> ViTConfig:
    side = config.get("image_size")
    table: Json = {} if side is None else dict(position="learned", position_resize="bilinear", image_size=(side, side))
    if side is not None and not isinstance(side, int):
        raise ValueError(f"image_size is {side!r}: expected the side of a square, as in transformers' PaddleOCR-VL")
    return siglip_names(config, mlp=activation(config), norm_eps=float(config["layer_norm_eps"]), **table)


def _write(config: ViTConfig) -> Json:
    back = siglip_names_back(config) | dict(hidden_act=activation_back(config.mlp), layer_norm_eps=config.norm_eps)
    return back | ({"image_size": config.image_size[0]} if config.position == "learned" else {})


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    rows = (
        layer("patch_embed", "embeddings.patch_embedding")
        + SIGLIP_BLOCKS.rows(config)
        + layer("norm", "post_layernorm")
    )
    if config.position == "learned":
        rows.append(key("position.table", "embeddings.position_embedding.weight", drop=1))
    return rows


_DEFAULTS: Json = dict(num_channels=3, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)

PADDLEOCR_VL = Family(
    name="paddleocr_vl_vision",
    whole_models=(WholeModel(model_type="paddleocr_vl"),),
    connector=("head.", "embeddings.packing_position_embedding."),
    architecture="PaddleOCRVisionModel",
    landmarks=("embeddings.patch_embedding.weight",),
    prefix="vision_model.",
    defaults=_DEFAULTS
    | dict(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ),
    read_config=_read,
    write_config=_write,
    keys=_keys,
    preprocessor=lambda config: OPENAI
    | dict(image_processor_type="PaddleOCRVLImageProcessor", patch_size=config.patch_size),
    image_processors={
        "PaddleOCRVLImageProcessor": OPENAI
        | dict(
            size={"shortest_edge": 384 * 384, "longest_edge": 1536 * 1536}, resample=3, patch_size=14, merge_size=2,
            temporal_patch_size=1,
        )
    },
    resize={"transformers": "bilinear"},
)  # fmt: skip
"""Cui et al. 2025 (arXiv:2510.14528): learned and rotary positions. Its files hold a pooling head that is not used."""

VIDEO_LLAMA_3 = Family(
    name="video_llama_3_vision",
    whole_models=(WholeModel(model_type="video_llama_3"),),
    architecture="VideoLlama3VisionModel",
    landmarks=PADDLEOCR_VL.landmarks,
    defaults=_DEFAULTS
    | dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16),
    read_config=lambda config, names: _read(config | {"image_size": None}, names),
    write_config=_write,
    keys=_keys,
    preprocessor=lambda config: HALF
    | dict(image_processor_type="VideoLlama3ImageProcessor", patch_size=config.patch_size),
    image_processors={
        "VideoLlama3ImageProcessor": HALF
        | dict(
            size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, resample=3, patch_size=14, merge_size=1,
            temporal_patch_size=1,
        )
    },
    resize={"transformers": "bilinear"},
    unresized=True,
)  # fmt: skip
"""Zhang et al. 2025 (arXiv:2501.13106): rotary positions alone."""
