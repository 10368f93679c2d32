"""Pixtral's tower, and Ovis2's."""

from torch import Tensor, nn

from support.census.case import Case, Reference


def pixtral(tower: nn.Module, x: Tensor) -> Reference:
    return Reference(tower(x).last_hidden_state.unflatten(1, (len(x), -1))[0])


def ovis2(tower: nn.Module, x: Tensor) -> Reference:
    return Reference(tower.transformer(x).last_hidden_state)


_LARGE4 = dict(
    kv_source_layers=[0, 0, 0], no_rope_layers=[1, 1, 0], indexer_types=["full"] * 3, kv_lora_rank=32,
    qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, index_head_dim=16, index_n_heads=2,
)  # fmt: skip

CASES = (
    Case(model_type="mistral3", tower="vision_tower", reference=pixtral),
    Case(
        model_type="mistral_large4",
        tower="vision_tower",
        reference=pixtral,
        changes={"text_config": _LARGE4, "vision_config": {"hidden_act": "silu"}},
    ),
    Case(
        model_type="lighton_ocr",
        tower="vision_encoder",
        reference=pixtral,
        changes={
            "vision_config": {"hidden_act": "silu", "rope_parameters": {"rope_type": "axial", "rope_theta": 500.0}}
        },
    ),
    Case(
        model_type="ovis2",
        tower="vision_tower",
        reference=ovis2,
        sizes=((64, 64),),
        changes={"vision_config": {"vocab_size": 128, "hidden_stride": 2}},
    ),
    Case(
        model_type="ovis2",
        label="ovis2, biases",
        tower="vision_tower",
        reference=ovis2,
        sizes=((64, 64),),
        changes={"vision_config": {"vocab_size": 128, "qkv_bias": True, "mlp_bias": True, "hidden_act": "gelu"}},
    ),
)
