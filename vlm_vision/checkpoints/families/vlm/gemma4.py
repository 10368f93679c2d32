"""The tower of Gemma 4, DiffusionGemma and EmbeddingGemma 2: four norms a block, tables for rows and columns, rotary positions."""

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style
from vlm_vision.checkpoints.families.fields import gated, gated_back
from vlm_vision.checkpoints.families.rotary import channel_order, rope_back, rope_theta
from vlm_vision.checkpoints.keys import PATCH_VECTOR, Key, TensorLayout, key
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope

NATIVE = 48
"""Sides, in patches, of the native size of a tower that takes any: 256 tokens after the pooling of 3 x 3, of at most 280."""

TABLES = TensorLayout(
    write=lambda x: x.unflatten(0, (2, x.shape[0] // 2)),
    read=lambda x, shape: x.flatten(0, 1),
)
"""Two tables one below the other as one tensor (2, rows, D)."""

_ENDS = ("input_min", "input_max", "output_min", "output_max")

BLOCKS = BlockNames(
    stem="encoder.layers.{}",
    norm1="input_layernorm",
    qkv=("self_attn.q_proj.linear", "self_attn.k_proj.linear", "self_attn.v_proj.linear"),
    proj="self_attn.o_proj.linear",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    post1="post_attention_layernorm",
    norm2="pre_feedforward_layernorm",
    fc1=("mlp.gate_proj.linear", "mlp.up_proj.linear"),
    fc2="mlp.down_proj.linear",
    post2="post_feedforward_layernorm",
)


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    patch = config["patch_size"]
    return ViTConfig(
        image_size=(NATIVE * patch, NATIVE * patch),
        patch_size=patch,
        remainder="error",
        unit_pixels=True,
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=_unless(config["num_key_value_heads"], config["num_attention_heads"]),
        head_width=_unless(config["head_dim"], config["hidden_size"] / config["num_attention_heads"]),
        mlp_dim=config["intermediate_size"],
        class_token=False,
        position="axes",
        axis_length=config["position_embedding_size"],
        rope=Rope(base=rope_theta(config, 100.0)),
        patch_bias=False,
        qkv_bias=False,
        proj_bias=False,
        mlp_bias=False,
        mlp=gated(config, "hidden_activation"),
        norm="rms",
        norm_eps=float(config["rms_norm_eps"]),
        post_norm=True,
        qk_norm="head",
        value_norm=True,
        clipped=config["use_clipped_linears"],
        attention_scale=1.0,
        final_norm=False,
        pool="none",
    )


def _unless(value: int, usual: float) -> int:
    """0 for a value that `ViTConfig` assumes."""
    return 0 if value == usual else value


def _config_back(config: ViTConfig) -> Json:
    return dict(
        patch_size=config.patch_size,
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.mlp_dim,
        hidden_activation=gated_back(config.mlp),
        rms_norm_eps=config.norm_eps,
        position_embedding_size=config.axis_length,
        rope_parameters=rope_back(config),
        use_clipped_linears=config.clipped,
    )


def _bounds(config: ViTConfig) -> list[Key]:
    """Four numbers of each linear map, one by one there."""
    parts = {"attn.qkv": BLOCKS.qkv, "attn.proj": (BLOCKS.proj,), "mlp.fc1": BLOCKS.fc1, "mlp.fc2": (BLOCKS.fc2,)}
    rows = []
    for i in range(config.depth):
        for ours, layers in parts.items():
            stems = [f"{BLOCKS.stem.format(i)}.{name.removesuffix('.linear')}" for name in layers]
            names = tuple(f"{stem}.{end}" for stem in stems for end in _ENDS)
            rows.append(key(f"blocks.{i}.{ours}.bounds", names, sizes=(0,) * len(names)))
    return rows


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    order = channel_order(config.head_dim, axes="columns first", channels="axis")
    tables = "patch_embedder.position_embedding_table"
    return [
        key("patch_embed.weight", "patch_embedder.input_proj.weight", layout=PATCH_VECTOR),
        key(("position.columns", "position.rows"), tables, layout=TABLES),
        *BLOCKS.rows(config, order=order),
        *(_bounds(config) if config.clipped else []),
    ]


GEMMA4 = Family(
    name="gemma4_vision",
    architecture="Gemma4VisionModel",
    landmarks=("patch_embedder.input_proj.weight",),
    connector=("std_bias", "std_scale"),
    defaults=dict(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=16, num_attention_heads=12, num_key_value_heads=12,
        head_dim=64, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, patch_size=16,
        position_embedding_size=10240, use_clipped_linears=False,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: {"image_processor_type": "Gemma4ImageProcessor", "patch_size": config.patch_size},
    image_processors={
        "Gemma4ImageProcessor": dict(
            resample=3, do_normalize=False, patch_size=16, max_soft_tokens=280, pooling_kernel_size=3,
            image_mean=[0.0] * 3, image_std=[1.0] * 3,
        ),
    },
    resize={"transformers": "bicubic"},
    unresized=True,
)  # fmt: skip
"""Gemma 4 (2026). The mean of 3 x 3 patches, their scale and shift follow the tower: its connector."""
