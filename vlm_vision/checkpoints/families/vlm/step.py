"""The tower of Step 3.7: Perception Encoder's blocks with LayerScale, learned and rotary positions."""

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import (
    BASE,
    OPENAI,
    activation,
    activation_back,
    common,
    common_back,
    ratio,
    square,
)
from vlm_vision.checkpoints.families.rotary import channel_order, rope_back, rope_theta
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope

_FIELDS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ls_init_value": "layer_scale_init_value",
}
"""Names of StepFun's own config.json, and transformers'."""


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    config = config | {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    return ViTConfig(
        **common(config),
        mlp_dim=int(config["hidden_size"] * config["mlp_ratio"]),  # its intermediate_size has no effect
        mlp=activation(config),
        class_token=False,
        position_resize="bilinear",
        rope=Rope(base=rope_theta(config)),
        patch_bias=False,
        pre_norm=True,
        layer_scale=float(config["layer_scale_init_value"]),
        final_norm=False,
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    return common_back(config) | dict(
        mlp_ratio=ratio(config.mlp_dim, config.embed_dim),
        hidden_act=activation_back(config.mlp),
        layer_scale_init_value=config.layer_scale,
        rope_parameters=rope_back(config),
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    fused = style == "memory"
    names = BlockNames(
        stem="layers.{}",
        norm1="layernorm_before",
        qkv="self_attn.in_proj" if fused else ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        proj="self_attn.out_proj",
        norm2="layernorm_after",
        fc1="mlp.fc1",
        fc2="mlp.fc2",
        scale1="lambda_1",
        scale2="lambda_2",
    )
    channels = "neighbors" if fused else "halves"
    return [
        *layer("patch_embed", "embeddings.patch_embedding", bias=False),
        key("position.table", "embeddings.position_embedding.weight", drop=1),
        *layer("pre_norm", "pre_layernorm"),
        *names.rows(config, order=channel_order(config.head_dim, axes="columns first", channels=channels)),
    ]


_STEPFUN = (
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "layers."),
    (r"^ln_pre\.", "pre_layernorm."),
    (r"^vit_downsampler", "downsampler"),
    (r"\.ls_(\d)\.gamma$", r".lambda_\1"),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
    (r"\.in_proj_", ".in_proj."),
    (r"\.ln_1\.", ".layernorm_before."),
    (r"\.ln_2\.", ".layernorm_after."),
)
"""Names of StepFun's own files, and transformers'."""


STEP3 = Family(
    name="step3p5_vision",
    whole_models=(WholeModel(model_type="step3p7", tower="step3p5_vision", always=True),),
    architecture="Step3p7VisionModel",
    landmarks=("embeddings.patch_embedding.weight", "conv1.weight"),
    connector=("downsampler1.", "downsampler2."),
    memory_mark=".self_attn.in_proj.",  # here the second layout is the one of StepFun's own files
    spellings=_STEPFUN,
    defaults=BASE
    | dict(
        hidden_size=1536,
        num_hidden_layers=47,
        num_attention_heads=16,
        image_size=728,
        patch_size=14,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        mlp_ratio=8960 / 1536,
        layer_scale_init_value=0.1,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="Step3p7ImageProcessor", size=square(config)),
    image_processors={
        "Step3p7ImageProcessor": OPENAI | dict(size={"height": 728, "width": 728}, resample=2, kernel="torch"),
    },
    resize={"transformers": "bilinear"},
)
"""StepFun 2026."""
