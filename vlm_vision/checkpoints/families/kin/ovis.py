"""The tower of Ovis2: AIMv2 without its pooling; a head on it chooses words of a visual vocabulary."""

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import BASE, OPENAI, common, common_back, gated, gated_back, square
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    return ViTConfig(
        **common(config | {"layer_norm_eps": config["rms_norm_eps"]}),
        mlp_dim=config["intermediate_size"],
        mlp=gated(config),
        norm="rms",
        class_token=False,
        patch_norm=True,
        position_resize="native",
        qkv_bias=config["qkv_bias"],
        proj_bias=config["qkv_bias"],
        mlp_bias=config["mlp_bias"],
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    back = common_back(config)
    return {name: value for name, value in back.items() if name != "layer_norm_eps"} | dict(
        rms_norm_eps=config.norm_eps,
        intermediate_size=config.mlp_dim,
        hidden_act=gated_back(config.mlp),
        qkv_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    names = BlockNames(
        stem="transformer.encoder.layers.{}",
        norm1="rms_norm1",
        qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        proj="attention.out_proj",
        norm2="rms_norm2",
        fc1=("ffn.gate_proj", "ffn.up_proj"),
        fc2="ffn.down_proj",
    )
    return [
        *layer("patch_embed", "transformer.embeddings.patch_embedding"),
        *layer("patch_norm", "transformer.embeddings.rms_norm", bias=False),
        key("position.table", "transformer.embeddings.position_embedding.weight", drop=1),
        *layer("norm", "transformer.rms_norm", bias=False),
        *names.rows(config),
    ]


OVIS2 = Family(
    name="ovis2_vision",
    whole_models=(WholeModel(model_type="ovis2", tower="ovis2_vision"),),
    architecture="Ovis2VisionModel",
    landmarks=("transformer.embeddings.patch_embedding.weight",),
    connector=("head_linear.", "head_norm."),
    defaults=BASE
    | dict(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=8,
        patch_size=14,
        rms_norm_eps=1e-5,
        qkv_bias=False,
        mlp_bias=False,
        hidden_act="silu",
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="Ovis2ImageProcessor", size=square(config)),
    image_processors={"Ovis2ImageProcessor": OPENAI | dict(size={"height": 384, "width": 384}, resample=3)},
    resize={"transformers": "native"},
)
"""Lu et al. 2024 (arXiv:2405.20797)."""
