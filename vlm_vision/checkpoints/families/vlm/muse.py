"""The tower of Muse Glimmer and Muse Spark: two frames a patch, attention in windows but for each fourth block."""

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import HALF, activation, activation_back
from vlm_vision.checkpoints.families.rotary import channel_order, rope_back, rope_theta
from vlm_vision.checkpoints.keys import PATCH_ROW, Key, TensorLayout, key, layer
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope

_KINDS = ("full_attention", "window_attention")


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    side, depth = config["pos_emb_height"], config["num_hidden_layers"]
    if config["pos_emb_width"] != side:
        raise ValueError(f"pos_emb_width is {config['pos_emb_width']}: expected that of pos_emb_height, {side}")
    kinds = config.get("layer_types") or [_KINDS[(i + 1) % 4 != 0 and i != depth - 1] for i in range(depth)]
    if len(kinds) < depth or not set(kinds) <= set(_KINDS):
        raise ValueError(f"layer_types is {kinds}: expected one of {', '.join(_KINDS)} for each of {depth} blocks")
    return ViTConfig(
        image_size=(side * config["patch_size"],) * 2,
        patch_size=config["patch_size"],
        embed_dim=config["hidden_size"],
        depth=depth,
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        class_token=False,
        temporal_patch=config["patch_temporal"],
        frames="apart",
        remainder="error",
        position_resize="bilinear_zeros_transposed",
        rope=Rope(base=rope_theta(config), first=1),
        patch_bias=False,
        pre_norm=True,
        norm_eps=1e-5,
        outer_eps=0.0 if config["layer_norm_eps"] == 1e-5 else float(config["layer_norm_eps"]),
        window=side,
        full_blocks=tuple(i for i, kind in enumerate(kinds[:depth]) if kind == "full_attention"),
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    return dict(
        patch_size=config.patch_size,
        pos_emb_height=config.grid[0],
        pos_emb_width=config.grid[1],
        num_attention_heads=config.num_heads,
        num_hidden_layers=config.depth,
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        rope_parameters=rope_back(config),
        patch_temporal=config.temporal_patch,
        layer_norm_eps=config.outer_eps or config.norm_eps,
        layer_types=[_KINDS[i not in config.full_blocks] for i in range(config.depth)],
    )


_FRAMES_FIRST = TensorLayout(
    write=lambda x: x.transpose(1, 2).flatten(1),
    read=lambda x, shape: x.view(shape[0], shape[2], shape[1], *shape[3:]).transpose(1, 2),
)
"""Our convolution (D, C, T, p, p) as a linear map of patch vectors in (frame, channel, row, column) order."""


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    names = BlockNames(
        stem="layers.{}",
        norm1="norm1",
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        proj="attn.proj",
        norm2="norm2",
        fc1="mlp.fc1",
        fc2="mlp.fc2",
    )
    patches = PATCH_ROW if config.temporal_patch == 1 else _FRAMES_FIRST
    return [
        key("patch_embed.weight", "patch_embedder.patch_embedding.weight", layout=patches),
        key("position.table", "patch_embedder.position_embedding_table.weight", drop=1),
        *layer("pre_norm", "ln_pre"),
        *layer("norm", "ln_post"),
        *names.rows(config, order=channel_order(config.head_dim, axes="columns first")),
    ]


MUSE = Family(
    name="muse_glimmer_vision",
    aliases={"muse_spark_vision": {}},
    whole_models=(
        WholeModel(model_type="muse_glimmer", tower="muse_glimmer_vision"),
        WholeModel(model_type="muse_spark", tower="muse_spark_vision"),
    ),
    architecture="MuseGlimmerVisionModel",
    landmarks=("patch_embedder.patch_embedding.weight",),
    defaults=dict(
        patch_size=14,
        pos_emb_height=32,
        pos_emb_width=32,
        num_attention_heads=16,
        num_hidden_layers=50,
        hidden_size=1536,
        intermediate_size=8960,
        hidden_act="gelu",
        patch_temporal=2,
        layer_norm_eps=1e-5,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="MuseGlimmerImageProcessor", patch_size=config.patch_size),
    image_processors={
        "MuseGlimmerImageProcessor": HALF
        | dict(max_image_tokens=4096, patch_size=14, merge_size=2, resample=1, kernel="torch"),
    },
    resize={"transformers": "bilinear_zeros_transposed"},
)
"""Meta 2026."""
