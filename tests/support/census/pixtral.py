"""Pixtral's tower, and Ovis2's."""

from functools import partial

from torch import Tensor, nn

from support.census.case import Case, Reference


def pixtral(tower: nn.Module, x: Tensor) -> Reference:
    return Reference(tower(x).last_hidden_state.unflatten(1, (len(x), -1))[0])


def ovis2(tower: nn.Module, x: Tensor) -> Reference:
    return Reference(tower.transformer(x).last_hidden_state)


def mistral(whole: nn.Module, tokens: Tensor, grid: tuple[int, int], *, name: str = "multi_modal_projector") -> Tensor:
    sizes = [(grid[0] * 8, grid[1] * 8)] * len(tokens)
    return getattr(whole, name)(tokens.flatten(0, 1), sizes).unflatten(0, (len(tokens), -1))


def vocabulary(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    whole.vision_tower.transformer.forward = lambda *args, **kwargs: (tokens,)
    projected = whole.get_image_features(tokens).pooler_output
    del whole.vision_tower.transformer.forward
    return projected


_LARGE4 = dict(
    kv_source_layers=[0, 0, 0], no_rope_layers=[1, 1, 0], indexer_types=["full"] * 3, kv_lora_rank=32,
    qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, index_head_dim=16, index_n_heads=2,
)  # fmt: skip

CASES = (
    Case(
        model_type="mistral3",
        tower="vision_tower",
        reference=pixtral,
        sizes=((64, 64), (40, 104)),
        connector=mistral,
        wide_connector=True,
        changes={"multimodal_projector_bias": True, "projector_hidden_act": "silu"},
    ),
    Case(
        model_type="mistral_large4",
        tower="vision_tower",
        reference=pixtral,
        connector=mistral,
        wide_connector=True,
        changes={"text_config": _LARGE4, "vision_config": {"hidden_act": "silu"}},
    ),
    Case(
        model_type="lighton_ocr",
        tower="vision_encoder",
        reference=pixtral,
        connector=partial(mistral, name="vision_projection"),
        wide_connector=True,
        changes={
            "vision_config": {"hidden_act": "silu", "rope_parameters": {"rope_type": "axial", "rope_theta": 500.0}}
        },
    ),
    Case(
        model_type="ovis2",
        tower="vision_tower",
        reference=ovis2,
        connector=vocabulary,
        sizes=((64, 64),),
        changes={"vision_config": {"vocab_size": 128, "hidden_stride": 2}},
    ),
    Case(
        model_type="ovis2",
        label="ovis2, biases",
        tower="vision_tower",
        reference=ovis2,
        connector=vocabulary,
        sizes=((64, 64),),
        changes={
            "vision_config": {
                "vocab_size": 128,
                "tokenize_function": "st_argmax",
                "qkv_bias": True,
                "mlp_bias": True,
                "hidden_act": "gelu",
            }
        },
    ),
)
