"""Qwen-VL, and the models around its towers."""

from support.census.case import Case
from support.census.inputs import grid_thw

_SHARED = dict(reference=grid_thw(), tower="visual", sizes=((64, 64), (48, 112)), frames=4)

CASES = (
    Case(model_type="qwen2_vl", changes={"vision_config": {"embed_dim": 64, "mlp_ratio": 2}}, **_SHARED),
    Case(
        model_type="qwen2_5_vl",
        changes={"vision_config": dict(window_size=32, fullatt_block_indexes=[1], depth=4)},
        **_SHARED | dict(reference=grid_thw(windows=32)),
    ),
    *(
        Case(
            model_type=name,
            changes={"vision_config": dict(num_position_embeddings=36, deepstack_visual_indexes=[0, 2])},
            **_SHARED,
        )
        for name in ("qwen3_vl", "qwen3_vl_moe")
    ),
    *(
        Case(model_type=name, changes={"vision_config": dict(num_position_embeddings=36)}, **_SHARED)
        for name in ("qwen3_5", "qwen3_5_moe")
    ),
)
