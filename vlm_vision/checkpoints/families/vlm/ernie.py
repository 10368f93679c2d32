"""The towers of ERNIE 4.5 VL and dots3: Qwen2-VL's blocks, patches of one frame, a norm at the end."""

from vlm_vision.checkpoints.families.blocks import GLM_BLOCKS, QWEN_BLOCKS
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import OPENAI, activation, activation_back, gated, gated_back
from vlm_vision.checkpoints.families.vlm.paddleocr import siglip_names, siglip_names_back
from vlm_vision.checkpoints.families.vlm.qwen import processor, video_config, video_config_back
from vlm_vision.checkpoints.keys import PATCH_ROW, Key, key, layer
from vlm_vision.nn.config import ViTConfig


def _ernie(config: Json, names: frozenset[str]) -> ViTConfig:
    return video_config(
        config | {"temporal_patch_size": 1},
        mlp=activation(config),
        norm_eps=float(config["rms_norm_eps"]),
        patch_bias=False,
        final_norm=True,
    )


def _ernie_back(config: ViTConfig) -> Json:
    if config.temporal_patch != 1:
        raise ValueError("transformers cannot express a tower with temporal patches here: set temporal_patch=1")
    back = video_config_back(config) | dict(hidden_act=activation_back(config.mlp), rms_norm_eps=config.norm_eps)
    del back["temporal_patch_size"]
    return back


def _ernie_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    patches = key("patch_embed.weight", "patch_embed.proj.weight", layout=PATCH_ROW)
    return [patches, *QWEN_BLOCKS.rows(config), *layer("norm", "ln")]


def _dots3(config: Json, names: frozenset[str]) -> ViTConfig:
    aliases = {"hidden_size": "embed_dim", "num_attention_heads": "num_heads", "attention_bias": "use_bias"}
    config = config | {name: config[alias] for name, alias in aliases.items() if config.get(alias) is not None}
    _check_dense(config)
    bias = config["attention_bias"]
    return siglip_names(
        config,
        mlp=gated(config),
        norm="rms",
        norm_eps=float(config["rms_norm_eps"]),
        patch_norm=True,
        qkv_bias=bias,
        proj_bias=bias,
        mlp_bias=config["mlp_bias"],
        qk_norm="head",
    )


def _check_dense(config: Json) -> None:
    """Raise ValueError for blocks of experts, or of other widths than the first."""
    depth, experts = config["num_hidden_layers"], config.get("pyramid_num_routed")
    kinds = config.get("mlp_layer_types") or ["dense"] * 25 + ["sparse"] * 17
    if experts is not None:
        kinds = ["sparse" if count > 0 else "dense" for count in experts]
    sparse = [i for i, kind in enumerate(kinds[:depth]) if kind != "dense"]
    if sparse:
        raise ValueError(
            f"mlp_layer_types has mixtures of experts from block {sparse[0]} on, which no block of this library is: "
            "expected dense ones alone"
        )
    for i, changed in (config.get("per_layer_config") or {}).items():
        unequal = {name for name, value in changed.items() if name in config and value != config[name]}
        if int(i) < depth and unequal - {"num_local_experts", "num_experts_per_tok"}:
            raise ValueError(f"per_layer_config gives block {i} another {min(unequal)}: expected equal blocks")


def _dots3_back(config: ViTConfig) -> Json:
    return siglip_names_back(config) | dict(
        hidden_act=gated_back(config.mlp),
        rms_norm_eps=config.norm_eps,
        attention_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
        mlp_layer_types=["dense"] * config.depth,
        adapter_in_dim=config.embed_dim,
    )


def _dots3_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    rows = layer("patch_embed", "patch_embed.proj") + GLM_BLOCKS.rows(config)
    return [*rows, key("patch_norm.weight", "patch_embed.norm.weight"), key("norm.weight", "norm.weight")]


_DOTS3_SPELLINGS = (
    (r"^post_trunk_norm\.", "norm."),
    (r"^(blocks\.\d+)\.norm_([12])\.", r"\1.norm\2."),
    (r"^(blocks\.\d+\.mlp)\.fc1\.", r"\1.gate_proj."),
    (r"^(blocks\.\d+\.mlp)\.fc2\.", r"\1.down_proj."),
    (r"^(blocks\.\d+\.mlp)\.fc3\.", r"\1.up_proj."),
)
"""Names of the public files -> those of transformers."""


_ERNIE_PROCESSOR: Json = OPENAI | dict(
    size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 6177}, resample=3, patch_size=14, merge_size=2,
    temporal_patch_size=1,
)  # fmt: skip

ERNIE4_5_VL = Family(
    name="ernie4_5_vl_moe_vision",
    whole_models=(WholeModel(model_type="ernie4_5_vl_moe"),),
    architecture="Ernie4_5_VLMoeVisionTransformerPretrainedModel",
    landmarks=("patch_embed.proj.weight",),
    defaults=dict(
        depth=32, hidden_size=1280, hidden_act="quick_gelu", num_heads=16, in_channels=3, patch_size=14,
        spatial_merge_size=2, intermediate_size=5120, rms_norm_eps=1e-6,
    ),
    read_config=_ernie,
    write_config=_ernie_back,
    keys=_ernie_keys,
    preprocessor=lambda config: OPENAI
    | dict(image_processor_type="Ernie4_5_VLMoeImageProcessor", patch_size=config.patch_size),
    image_processors={
        "Ernie4_5_VLMoeImageProcessor": _ERNIE_PROCESSOR,
        "Ernie4_5_VL_MoeImageProcessor": _ERNIE_PROCESSOR,
    },
    resize={"transformers": "bicubic"},
    unresized=True,
)  # fmt: skip
"""Baidu 2025, ERNIE 4.5 Technical Report."""

DOTS3 = Family(
    name="dots3_note_vision_encoder",
    whole_models=(WholeModel(model_type="dots3_note"),),
    connector=("merger.", "adapter."),
    architecture="Dots3NoteVisionModel",
    landmarks=("patch_embed.proj.weight",),
    spellings=_DOTS3_SPELLINGS,
    defaults=dict(
        hidden_size=1536, intermediate_size=4224, num_hidden_layers=42, num_attention_heads=24, num_channels=3,
        patch_size=14, hidden_act="silu", rms_norm_eps=1e-5, attention_bias=False, mlp_bias=False,
    ),
    read_config=_dots3,
    write_config=_dots3_back,
    keys=_dots3_keys,
    preprocessor=lambda config: processor(config.patch_size),
    resize={"transformers": "bicubic"},
    unresized=True,
)  # fmt: skip
"""Gated perceptrons, norms of queries and keys; towers whose last blocks are mixtures of experts are refused."""
