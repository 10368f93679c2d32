"""The tower of Kimi K2.5, MoonViT: learned and rotary positions at native resolution, all frames of a clip in one sequence."""

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import HALF, activation, activation_back, pair
from vlm_vision.checkpoints.families.rotary import channel_order, rope_back, rope_theta
from vlm_vision.checkpoints.keys import Key, key, layer, table_to_grid
from vlm_vision.nn.config import ViTConfig, check_whole
from vlm_vision.nn.rope import Rope


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    side, patch = config["pos_emb_height"], pair(config["patch_size"])
    if config["pos_emb_width"] != side:
        raise ValueError(f"pos_emb_width is {config['pos_emb_width']}: expected that of pos_emb_height, {side}")
    if patch[0] != patch[1]:
        raise ValueError(f"patch_size is {list(patch)}: expected a square")
    check_whole("pos_emb_time", config["pos_emb_time"], 1)
    return ViTConfig(
        image_size=(side * patch[0],) * 2,
        patch_size=patch[0],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        mlp=activation(config),
        class_token=False,
        frames="joined",
        time_position=config["pos_emb_time"],
        remainder="error",
        position_resize="bicubic",
        rope=Rope(base=rope_theta(config)),
        norm_eps=1e-5,
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    return dict(
        patch_size=config.patch_size,
        pos_emb_height=config.grid[0],
        pos_emb_width=config.grid[1],
        pos_emb_time=config.time_position,
        num_attention_heads=config.num_heads,
        num_hidden_layers=config.depth,
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_dim,
        hidden_act=activation_back(config.mlp),
        rope_parameters=rope_back(config),
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    fused = style == "memory"
    names = BlockNames(
        stem="layers.{}",
        norm1="norm1",
        qkv="wqkv" if fused else ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        proj="attn.proj",
        norm2="norm2",
        fc1="mlp.fc1",
        fc2="mlp.fc2",
    )
    channels = "neighbors" if fused else "halves"
    order = channel_order(config.head_dim, axes="columns first", planes="alternate", channels=channels)
    return [
        *layer("patch_embed", "patch_embed.proj"),
        key("position.table", "patch_embed.pos_emb.position_embeddings", layout=table_to_grid(*config.grid)),
        *layer("norm", "final_layernorm"),
        *names.rows(config, order=order),
    ]


_HUB = (
    *(
        (rf"^(encoder\.blocks\..*\.{layers}){i}\.", rf"\g<1>{i + 1}.")
        for layers in ("norm", r"mlp\.fc")
        for i in (1, 0)
    ),
    (r"^encoder\.", ""),
    (r"^blocks\.", "layers."),
    (r"\.wo\.", ".attn.proj."),
    (r"pos_emb\.weight$", "pos_emb.position_embeddings"),
)
"""Names of the public files, which count norms and linear layers from 0, and transformers'."""


KIMI_K25 = Family(
    name="kimi_k25_vision",
    whole_models=(WholeModel(model_type="kimi_k25", tower="kimi_k25_vision"),),
    architecture="Kimi_K25VisionModel",
    landmarks=("patch_embed.pos_emb.position_embeddings", "patch_embed.pos_emb.weight"),
    memory_mark=".wqkv.",  # here the second layout is the one of the public files
    spellings=_HUB,
    defaults=dict(
        patch_size=14,
        pos_emb_height=64,
        pos_emb_width=64,
        pos_emb_time=4,
        num_attention_heads=16,
        num_hidden_layers=27,
        hidden_size=1152,
        intermediate_size=4304,
        hidden_act="gelu_pytorch_tanh",
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="Kimi_K25ImageProcessor", patch_size=config.patch_size),
    image_processors={
        "Kimi_K25ImageProcessor": HALF
        | dict(
            size={"max_height": 512, "max_width": 512},
            max_patches=16384,
            patch_size=14,
            merge_size=2,
            resample=3,
            kernel="torch",
        ),
    },
    resize={"transformers": "bicubic"},
)
"""Kimi Team 2026 (arXiv:2602.02276)."""
