"""The tower of Pixtral, Mistral Small 3, Mistral Large 4 and LightOnOCR: RMSNorm, gated MLP, rotary positions alone."""

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import BASE, OPENAI, common, common_back, gated, gated_back
from vlm_vision.checkpoints.families.rotary import channel_order, rope_back, rope_theta
from vlm_vision.checkpoints.keys import Key, layer
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    return ViTConfig(
        **common(config | {"layer_norm_eps": 1e-5}),
        mlp_dim=config["intermediate_size"],
        mlp=gated(config),
        norm="rms",
        class_token=False,
        position="none",
        rope=Rope(base=rope_theta(config), frequencies="alternate"),
        pre_norm=True,
        patch_bias=False,
        qkv_bias=False,
        proj_bias=False,
        mlp_bias=False,
        final_norm=False,
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    back = common_back(config)
    del back["layer_norm_eps"]
    return back | dict(
        intermediate_size=config.mlp_dim,
        hidden_act=gated_back(config.mlp),
        head_dim=config.head_dim,
        rope_parameters=rope_back(config),
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    mistral = style == "memory"
    order = channel_order(config.head_dim, channels="neighbors") if mistral else None
    inputs = ("wq", "wk", "v_proj") if mistral else ("q_proj", "k_proj", "v_proj")
    queries, keys, values = (f"attention.{name}" for name in inputs)
    names = BlockNames(
        stem="transformer.layers.{}",
        norm1="attention_norm",
        qkv=(queries, keys, values),
        proj="attention.o_proj",
        norm2="ffn_norm",
        fc1=("feed_forward.gate_proj", "feed_forward.up_proj"),
        fc2="feed_forward.down_proj",
    )
    rows = layer("patch_embed", "patch_conv", bias=False) + layer("pre_norm", "ln_pre", bias=False)
    return rows + names.rows(config, order=order)


_MISTRAL = (
    (r"\.wv\.", ".v_proj."),
    (r"\.wo\.", ".o_proj."),
    (r"\.feed_forward\.w1\.", ".feed_forward.gate_proj."),
    (r"\.feed_forward\.w2\.", ".feed_forward.down_proj."),
    (r"\.feed_forward\.w3\.", ".feed_forward.up_proj."),
)
"""Names of Mistral's own files, and transformers'; queries and keys keep theirs, since their channels are in another order."""


PIXTRAL = Family(
    name="pixtral",
    whole_models=tuple(
        WholeModel(model_type=model_type, tower="pixtral")
        for model_type in ("mistral3", "mistral_large4", "lighton_ocr")
    ),
    architecture="PixtralVisionModel",
    landmarks=("patch_conv.weight",),
    memory_mark=".attention.wq.",  # here the second layout is the one of Mistral's own files
    spellings=_MISTRAL,
    defaults=BASE
    | dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=1024,
        patch_size=16,
        hidden_act="gelu",
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(
        image_processor_type="PixtralImageProcessor",
        patch_size=config.patch_size,
        size={"longest_edge": max(config.image_size)},
    ),
    image_processors={
        "PixtralImageProcessor": OPENAI | dict(size={"longest_edge": 1024}, patch_size=16, resample=3),
    },
    resize={"transformers": "bicubic"},
    unresized=True,
)
"""Agrawal et al. 2024 (arXiv:2410.07073)."""
