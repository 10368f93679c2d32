"""Towers of timm's module `eva` as timm names them: rotary positions other than DINOv3's, or a qkv bias without its key part."""

from typing import Any

from vlm_vision.nn.config import ViTConfig

Json = dict[str, Any]


def belongs(config: ViTConfig) -> bool:
    """Whether timm's module `eva`, and not its plain vision transformer, has this architecture."""
    masked = config.qkv_bias and not config.key_bias
    return config.rope is not None or (masked and config.position == "learned")


def architecture(config: ViTConfig) -> str:
    """timm's architecture whose epsilon and kind of attention are ours; the arguments say the rest."""
    if config.norm_eps == 1e-5:
        return "vit_pe_spatial_base_patch16_512"
    if config.rope is None:
        return "eva_giant_patch14_224"
    return "vit_base_patch16_rope_224" if config.key_bias or not config.qkv_bias else "eva02_tiny_patch14_224"


def arguments(config: ViTConfig) -> Json:
    """timm's arguments that only this module has."""
    made: Json = dict(
        dynamic_img_size=True,
        qkv_fused=True,
        qkv_bias=config.qkv_bias,
        class_token=config.class_token,
        num_reg_tokens=config.num_registers,
        no_embed_class=config.num_prefix_tokens > 0 and config.position_prefix == 0,
        use_abs_pos_emb=config.position == "learned",
        use_pre_transformer_norm=config.pre_norm,
        use_post_transformer_norm=config.final_norm,
        use_fc_norm=config.pool_norm,
        init_values=config.layer_scale,
        swiglu_mlp=config.mlp == "swiglu",
        scale_mlp=config.inner_norm != "none",
        scale_attn_inner=config.inner_norm == "both",
    )
    if config.rope is not None:
        made |= dict(
            rope_temperature=config.rope.base,
            rope_grid_offset=config.rope.first,
            rope_grid_indexing="ij",
            ref_feat_shape=[config.rope.span] * 2 if config.rope.coordinates == "share" else None,
        )
    if config.pool == "map_all":
        made |= dict(
            attn_pool_num_heads=config.pool_heads or config.num_heads,
            attn_pool_mlp_ratio=(config.pool_mlp_dim or config.mlp_dim) / config.embed_dim,
        )
    return made


def weight_names(config: ViTConfig) -> list[str]:
    """Names by which `timm_layout` knows this spelling."""
    split = config.mlp == "swiglu" and config.inner_norm != "none"
    parts = ("fc1_g", "fc1_x", "fc2") if split else ("fc1", "fc2")
    names = ["patch_embed.proj.weight", "reg_token", *(f"blocks.0.mlp.{part}.weight" for part in parts)]
    names += ["blocks.0.gamma_1"] if config.layer_scale is not None else []
    return names + (["blocks.0.attn.q_bias"] if config.qkv_bias and not config.key_bias else [])
