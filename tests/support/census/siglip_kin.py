"""SigLIP and its kin, and the models around its tower."""

from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from support.census.case import Case, Reference
from support.census.inputs import grid_thw, naflex, pixels, raster


def patch_rows(tower: nn.Module, x: Tensor) -> Reference:
    """Molmo2's rows of patches."""
    return Reference(tower(rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=8, q=8)).last_hidden_state)


def granite_docling(tower: nn.Module, x: Tensor) -> Reference:
    """Granite-Docling's tokens before its connector, positions resized as its embeddings can."""
    embed = tower.embeddings.forward
    tower.embeddings.forward = partial(embed, interpolate_pos_encoding=True)
    tokens, _ = tower.encode(x)
    tower.embeddings.forward = embed
    return Reference(tokens)


def naflex_rows(tower: nn.Module, x: Tensor) -> Reference:
    """Cosmos 3 Edge's rows of patches, in squares of 2 x 2."""
    x = x[:, None] if x.ndim == 4 else x
    rows = rearrange(x, "b t c (h i p) (w j q) -> (b t h w i j) (p q c)", i=2, j=2, p=8, q=8)
    grid = torch.tensor([[x.shape[1], x.shape[-2] // 8, x.shape[-1] // 8]] * len(x))
    return Reference(raster(tower(rows, grid).last_hidden_state, grid, 2))


def phi4(tower: nn.Module, x: Tensor) -> Reference:
    """Phi-4's tokens by eager attention: with scaled_dot_product_attention transformers 5.24 attends causally, but only in
    batches without a padded image."""
    tower.set_attn_implementation("eager")
    return Reference(tower(x).last_hidden_state)


_TEXT = dict(head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 2, 2]))
_ROWS = grid_thw(merge=1, temporal=1, names=("pixel_values", "grid_thw"))
_SIGLIP = dict(tower="vision_model", reference=pixels())
_VLM = dict(tower="vision_tower", reference=pixels())

CASES = (
    Case(model_type="siglip", **_SIGLIP),
    *(
        Case(model_type=name, **_VLM)
        for name in ("llava_onevision", "paligemma", "gemma3", "aya_vision", "cohere2_vision")
    ),
    Case(model_type="aria", **_VLM | dict(reference=pixels(resize=False))),
    Case(
        model_type="shieldgemma2",
        model="ShieldGemma2ForImageClassification",
        **_VLM | dict(tower="model.model.vision_tower"),
    ),
    Case(model_type="t5gemma2_encoder", changes={"text_config": dict(dropout_rate=0.0)}, **_VLM),
    *(Case(model_type=name, **_SIGLIP) for name in ("deepseek_vl", "deepseek_vl_hybrid", "modernvbert", "ultravbert")),
    *(
        Case(model_type=name, **_SIGLIP | dict(reference=pixels(resize=False)))
        for name in ("idefics3", "smolvlm", "idefics2")
    ),
    Case(model_type="aimv2", **_SIGLIP | dict(sizes=((64, 64),), reference=pixels(resize=False))),
    Case(model_type="vision-text-dual-encoder", **_SIGLIP | dict(reference=pixels(prefix=1))),
    Case(
        model_type="tipsv2",
        **_SIGLIP | dict(reference=pixels(prefix=2, resize=False)),
        changes=dict(
            vision_config=dict(
                out_features=["stage3"], out_indices=[3], stage_names=["stem", "stage1", "stage2", "stage3"]
            )
        ),
    ),
    Case(model_type="siglip2", **_SIGLIP | dict(reference=naflex(), changes=dict(vision_config=dict(num_patches=64)))),
    Case(model_type="lfm2_vl", **_VLM | dict(reference=naflex(), changes=dict(vision_config=dict(num_patches=64)))),
    Case(
        model_type="phi4_multimodal",
        changes={"vision_config": dict(num_hidden_layers=2)},
        tower="embed_tokens_extend.image_embed.img_processor",
        reference=phi4,
    ),
    Case(model_type="janus", **_SIGLIP, changes={"vision_config": dict(num_attention_heads=2)}),
    Case(
        model_type="janus",
        label="janus-no-bias",
        **_SIGLIP,
        changes={"vision_config": dict(attention_bias=False, mlp_ratio=1.7, hidden_act="gelu_new")},
    ),
    Case(
        model_type="glm_image",
        tower="visual",
        reference=_ROWS,
    ),
    Case(
        model_type="glm_image",
        label="glm_image-no-bias",
        changes={"vision_config": dict(attention_bias=False, spatial_merge_size=2)},
        tower="visual",
        reference=grid_thw(temporal=1, names=("pixel_values", "grid_thw")),
    ),
    Case(model_type="granite_docling", **_SIGLIP | dict(reference=granite_docling)),
    Case(
        model_type="cosmos3_edge",
        changes={
            "text_config": _TEXT,
            "vision_config": dict(num_patches=64),
        },
        tower="visual",
        reference=naflex_rows,
        sizes=((64, 64), (48, 112)),
        frames=3,
    ),
    Case(
        model_type="hunyuan_vl",
        changes={"text_config": _TEXT, "vision_config": dict(max_image_size=64)},
        tower="vision_tower",
        reference=_ROWS,
    ),
    Case(
        model_type="hunyuan_vl",
        label="hunyuan_vl-bicubic",
        changes={
            "text_config": _TEXT,
            "vision_config": dict(max_image_size=128, interpolate_mode="bicubic", head_dim=8),
        },
        tower="vision_tower",
        reference=_ROWS,
    ),
    Case(
        model_type="hy_v4_vl",
        changes={"vision_config": dict(max_image_size=64)},
        tower="vision_tower",
        reference=_ROWS,
        frames=3,
    ),
    Case(
        model_type="molmo2",
        changes={
            "adapter_config": dict(vision_feature_layer=[2, 0]),
            "vision_config": dict(image_size=[64, 96], num_position_embeddings=96, num_key_value_heads=2, head_dim=24),
        },
        tower="vision_tower",
        reference=patch_rows,
        sizes=((64, 96),),
    ),
    Case(
        model_type="molmo2",
        label="molmo2-no-bias",
        changes={
            "adapter_config": dict(vision_feature_layer=[2, 0]),
            "vision_config": dict(image_size=[64, 64], num_position_embeddings=64, attention_bias=False),
        },
        tower="vision_tower",
        reference=patch_rows,
        sizes=((64, 64),),
    ),
)
