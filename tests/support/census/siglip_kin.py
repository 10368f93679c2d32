"""SigLIP and its kin, and the models around its tower."""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import vlm_vision as vv
from support.census.case import Case, Json, Reference
from support.census.inputs import connector, grid_thw, naflex, pixels, raster


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


def lfm2(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """LFM2-VL's projector of images."""
    return whole.multi_modal_projector(tokens.unflatten(1, grid)).flatten(1, 2)


def squares(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosmos 3 Edge's projector of squares of patches."""
    rows = rearrange(tokens, "b (h i w j) d -> (b h w i j) d", i=2, j=2, h=grid[0] // 2, w=grid[1] // 2)
    return whole.projector(rows).unflatten(0, (len(tokens), -1))


def hunyuan(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patch merger of HunYuan-VL and HY-V4-VL without the vectors at the ends of rows and images."""
    merged = whole.vision_tower.patch_merger(tokens, size=grid)
    if len(merged) == len(tokens):
        merged = merged[:, 1:-1]
    return merged.reshape(len(tokens), grid[0] // 2, grid[1] // 2 + 1, -1)[:, :, :-1].flatten(1, 2)


def phi4_crop(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """What Phi-4 makes of one crop."""
    embed = whole.embed_tokens_extend.image_embed
    image = tokens.mT.unflatten(2, grid)
    image = embed.image_token_compression(getattr(embed, "img_processor_padding", nn.Identity())(image))
    return embed.img_projection_down(F.gelu(embed.img_projection_up(image.flatten(2).mT)))


def molmo2_pool(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Molmo2's adapter on places that its image processor would give: 2 x 2, -1 past the edges."""
    places = torch.arange(grid[0] * grid[1]).view(grid)
    missing = [size % 2 for size in grid]
    places = F.pad(places, (0, missing[1], 0, missing[0]), value=-1)
    places = rearrange(places, "(h p) (w q) -> (h w) (p q)", p=2, q=2)
    return torch.stack([whole.multi_modal_projector(image, places).last_hidden_state for image in tokens])


def idefics2(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Idefics2's resampler, every patch seen."""
    return whole.connector(tokens, attention_mask=torch.ones(tokens.shape[:2], dtype=torch.bool))


def raw(*layers: int) -> tuple[vv.Tap, ...]:
    """Outputs of these blocks without the final norm."""
    return tuple(vv.Tap(layer, norm=False) for layer in layers)


_TEXT: Json = dict(head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 2, 2]))
_ROWS = grid_thw(merge=1, temporal=1, names=("pixel_values", "grid_thw"))
_SIGLIP: Json = dict(tower="vision_model", reference=pixels())
_VLM: Json = dict(tower="vision_tower", reference=pixels(), connector=connector("multi_modal_projector"))
_NATIVE: Json = dict(reference=pixels(resize=False))
_GEMMA: Json = dict(mm_tokens_per_image=16)
_TIPS: Json = dict(out_features=["stage3"], out_indices=[3], stage_names=["stem", "stage1", "stage2", "stage3"])
_MOLMO: Json = dict(tower="vision_tower", reference=patch_rows, connector=molmo2_pool, connector_taps=raw(2, 0))
_PHI: Json = dict(
    tower="embed_tokens_extend.image_embed.img_processor",
    reference=phi4,
    connector=phi4_crop,
    connector_taps=raw(-2),
)

_SMALL_VQ = dict(base_channels=32, latent_channels=32, num_embeddings=64)
"""The image generator of Janus, which has no part here."""

CASES = (
    Case(model_type="siglip", **_SIGLIP),
    *(Case(model_type=name, **_VLM) for name in ("llava_onevision", "paligemma", "aya_vision", "cohere2_vision")),
    Case(
        model_type="aya_vision",
        label="aya_vision-4",
        changes=dict(downsample_factor=4, alignment_intermediate_size=40, adapter_layer_norm_eps=1e-3),
        **_VLM,
    ),
    Case(model_type="gemma3", changes=_GEMMA, **_VLM),
    Case(
        model_type="aria",
        changes=dict(projector_patch_to_query_dict={64: 5, 48: 3}),
        **_VLM | _NATIVE | dict(wide_connector=True),
    ),
    Case(
        model_type="shieldgemma2",
        model="ShieldGemma2ForImageClassification",
        changes=_GEMMA,
        **_VLM | dict(tower="model.model.vision_tower", connector=connector("model.model.multi_modal_projector")),
    ),
    Case(model_type="t5gemma2_encoder", changes={"text_config": dict(dropout_rate=0.0)} | _GEMMA, **_VLM),
    Case(model_type="deepseek_vl", connector=connector("aligner"), wide_connector=True, **_SIGLIP),
    Case(model_type="deepseek_vl_hybrid", **_SIGLIP),
    *(Case(model_type=name, connector=connector("connector"), **_SIGLIP) for name in ("modernvbert", "ultravbert")),
    *(Case(model_type=name, connector=connector("connector"), **_SIGLIP | _NATIVE) for name in ("idefics3", "smolvlm")),
    Case(model_type="idefics2", connector=idefics2, wide_connector=True, **_SIGLIP | _NATIVE),
    Case(model_type="aimv2", sizes=((64, 64),), **_SIGLIP | _NATIVE),
    Case(
        model_type="aimv2",
        label="aimv2-biased",
        changes={
            "vision_config": dict(qkv_bias=True, mlp_bias=True, use_head=False, is_native=True, hidden_act="gelu")
        },
        **_SIGLIP | _NATIVE,
    ),
    Case(model_type="vision-text-dual-encoder", **_SIGLIP | dict(reference=pixels(prefix=1))),
    Case(
        model_type="tipsv2",
        changes=dict(vision_config=_TIPS),
        **_SIGLIP | dict(reference=pixels(prefix=2, resize=False)),
    ),
    Case(
        model_type="tipsv2",
        label="tipsv2-swiglu",
        changes=dict(vision_config=_TIPS | dict(use_swiglu_ffn=True, num_register_tokens=3, qkv_bias=False)),
        **_SIGLIP | dict(reference=pixels(prefix=4, resize=False)),
    ),
    Case(model_type="siglip2", changes=dict(vision_config=dict(num_patches=64)), **_SIGLIP | dict(reference=naflex())),
    Case(
        model_type="lfm2_vl",
        changes=dict(vision_config=dict(num_patches=64)),
        wide_connector=True,
        **_VLM | dict(reference=naflex(), connector=lfm2),
    ),
    Case(
        model_type="lfm2_vl",
        label="lfm2_vl-plain",
        changes=dict(
            vision_config=dict(num_patches=49),
            projector_use_layernorm=False,
            projector_bias=False,
            projector_hidden_size=40,
            projector_hidden_act="silu",
        ),
        wide_connector=True,
        **_VLM | dict(reference=naflex(), connector=lfm2),
    ),  # fmt: skip
    Case(model_type="phi4_multimodal", changes={"vision_config": dict(num_hidden_layers=2)}, **_PHI),
    Case(
        model_type="phi4_multimodal",
        label="phi4_multimodal-odd",
        changes={"vision_config": dict(num_hidden_layers=2, image_size=56)},
        sizes=((56, 56),),
        **_PHI,
    ),
    Case(
        model_type="janus",
        changes={"vision_config": dict(num_attention_heads=2), "vq_config": _SMALL_VQ},
        connector=connector("aligner"),
        wide_connector=True,
        **_SIGLIP,
    ),
    Case(
        model_type="janus",
        label="janus-no-bias",
        changes={
            "vision_config": dict(attention_bias=False, mlp_ratio=1.7, hidden_act="gelu_new", depth=3),
            "vq_config": _SMALL_VQ,
        },
        connector=connector("aligner"),
        **_SIGLIP,
    ),
    Case(model_type="glm_image", tower="visual", reference=_ROWS),
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
        changes={"text_config": _TEXT, "vision_config": dict(num_patches=64), "projector_hidden_size": 88},
        tower="visual",
        reference=naflex_rows,
        sizes=((64, 64), (48, 112)),
        frames=3,
        connector=squares,
        wide_connector=True,
    ),
    Case(
        model_type="hunyuan_vl",
        changes={"text_config": _TEXT, "vision_config": dict(max_image_size=64)},
        tower="vision_tower",
        reference=_ROWS,
        connector=hunyuan,
        wide_connector=True,
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
        connector=hunyuan,
        wide_connector=True,
    ),
    Case(
        model_type="hy_v4_vl",
        label="hy_v4_vl-bicubic",
        changes={"vision_config": dict(max_image_size=64, interpolate_mode="bicubic", hidden_act="gelu_pytorch_tanh")},
        tower="vision_tower",
        reference=_ROWS,
    ),
    Case(
        model_type="molmo2",
        changes={
            "adapter_config": dict(vision_feature_layer=[2, 0]),
            "vision_config": dict(image_size=[64, 72], num_position_embeddings=72, num_key_value_heads=2, head_dim=24),
        },
        sizes=((64, 72),),
        **_MOLMO,
    ),
    Case(
        model_type="molmo2",
        label="molmo2-no-bias",
        changes={
            "adapter_config": dict(
                vision_feature_layer=[2, 0],
                attention_bias=False,
                mlp_bias=True,
                num_key_value_heads=2,
                hidden_act="gelu",
            ),
            "vision_config": dict(image_size=[64, 64], num_position_embeddings=64, attention_bias=False),
        },
        sizes=((64, 64),),
        **_MOLMO,
    ),
)
