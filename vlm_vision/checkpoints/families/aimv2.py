"""AIMv2: RMSNorm, SwiGLU, a norm between patches and positions, a query that pools."""

from vlm_vision.checkpoints.families.family import Family, Json, Presets, Style, WholeModel, row
from vlm_vision.checkpoints.families.fields import (
    BASE,
    BICUBIC_ANTIALIAS,
    blocks,
    common,
    common_back,
    gated,
    gated_back,
    square,
)
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
        position="sincos2d" if config["is_native"] else "learned",
        position_resize="recompute" if config["is_native"] else "native",
        qkv_bias=config["qkv_bias"],
        proj_bias=config["qkv_bias"],
        mlp_bias=config["mlp_bias"],
        pool="query" if config["use_head"] else "none",
    )


def _config_back(config: ViTConfig) -> Json:
    back = common_back(config)
    return {name: value for name, value in back.items() if name != "layer_norm_eps"} | dict(
        rms_norm_eps=config.norm_eps,
        intermediate_size=config.mlp_dim,
        hidden_act=gated_back(config.mlp),
        qkv_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
        is_native=config.position == "sincos2d",
        use_head=config.pool == "query",
    )


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    keys = [
        *layer("patch_embed", "embeddings.patch_embed", bias=config.patch_bias),
        *layer("patch_norm", "embeddings.rms_norm", bias=False),
        *layer("norm", "rms_norm", bias=False),
    ]
    if config.position == "learned":
        keys.append(key("position.table", "embeddings.position_embedding.weight", drop=1))
    if config.pool == "query":
        keys += [
            key("pool.probe", "head.cls_token"),
            *layer("pool.kv", ("head.k_proj", "head.v_proj"), bias=config.qkv_bias),
            *layer("pool.proj", "head.output_proj"),
        ]

    def block(i: int) -> list[Key]:
        theirs = f"encoder.layers.{i}"
        return [
            *layer(f"blocks.{i}.norm1", f"{theirs}.rms_norm1", bias=False),
            *layer(
                f"blocks.{i}.attn.qkv", tuple(f"{theirs}.attention.{part}_proj" for part in "qkv"), bias=config.qkv_bias
            ),
            *layer(f"blocks.{i}.attn.proj", f"{theirs}.attention.out_proj", bias=config.proj_bias),
            *layer(f"blocks.{i}.norm2", f"{theirs}.rms_norm2", bias=False),
            *layer(f"blocks.{i}.mlp.fc1", (f"{theirs}.ffn.gate_proj", f"{theirs}.ffn.up_proj"), bias=config.mlp_bias),
            *layer(f"blocks.{i}.mlp.fc2", f"{theirs}.ffn.down_proj", bias=config.mlp_bias),
        ]

    return keys + blocks(config, block)


AIMV2 = Family(
    name="aimv2_vision_model",
    whole_models=(WholeModel(model_type="aimv2", checked=True),),
    siblings=("text_model.", "text_projection.", "visual_projection.", "logit_scale"),
    architecture="Aimv2VisionModel",
    landmarks=("embeddings.patch_embed.weight",),
    defaults=BASE
    | dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=8,
        intermediate_size=2816,
        patch_size=14,
        hidden_act="silu",
        rms_norm_eps=1e-5,
        qkv_bias=False,
        mlp_bias=False,
        use_head=True,
        is_native=False,
    ),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": min(config.image_size)},
        crop_size=square(config),
    ),
    resize={"transformers": "native", "timm": BICUBIC_ANTIALIAS},
    timm=lambda config: "aimv2_large_patch14_224",
    presets=(
        Presets(  # Fini et al. 2024 (arXiv:2411.14402)
            name="aimv2",
            fields=dict(
                class_token=False,
                patch_norm=True,
                norm="rms",
                norm_eps=1e-5,
                mlp="swiglu",
                qkv_bias=False,
                proj_bias=False,
                mlp_bias=False,
                pool="query",
                position_resize="native",
            ),
            rows=(
                row("large", "14:224,336,448"),
                row("huge", "14:224,336,448"),
                row("1b", "14:224,336,448"),
                row("3b", "14:224,336,448"),
            ),
            sizes={
                "large": dict(embed_dim=1024, depth=24, num_heads=8, mlp_dim=2816),
                "huge": dict(embed_dim=1536, depth=24, num_heads=12, mlp_dim=4096),
                "1b": dict(embed_dim=2048, depth=24, num_heads=16, mlp_dim=5632),
                "3b": dict(embed_dim=3072, depth=24, num_heads=24, mlp_dim=8192),
            },
        ),
    ),
)
