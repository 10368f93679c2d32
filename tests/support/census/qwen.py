"""Qwen-VL, and the models around its towers."""

from support.census.case import Case
from support.census.inputs import grid_thw, merger

_SHARED = dict(reference=grid_thw(), tower="visual", sizes=((64, 64), (48, 112)), frames=4, wide_connector=True)
_WINDOWS = dict(window_size=32, fullatt_block_indexes=[1], depth=4)
_TABLE = dict(num_position_embeddings=36)
_DEEP = _TABLE | dict(deepstack_visual_indexes=[0, 2])


def merged(merge: int, *, windows: int = 0, temporal: int = 2) -> dict:
    """What a case needs for another side of the squares, or frames of a patch; `windows`: their side in pixels."""
    return dict(
        reference=grid_thw(merge=merge, windows=windows, temporal=temporal),
        connector=merger("visual.merger", merge=merge),
        sizes=((16 * merge, 16 * merge), (8 * merge, 24 * merge)),
        frames=3 * temporal,
    )


_QWEN2_5 = _SHARED | dict(reference=grid_thw(windows=32), connector=merger("visual.merger"))
_QWEN3 = _SHARED | dict(connector=merger("visual.merger"))

CASES = (
    Case(
        model_type="qwen2_vl",
        changes={"vision_config": {"embed_dim": 64, "mlp_ratio": 2}},
        **_SHARED | dict(connector=merger("visual.merger")),
    ),
    Case(
        model_type="qwen2_vl",
        label="qwen2_vl-wide",
        changes={
            "vision_config": dict(embed_dim=96, hidden_size=40, mlp_ratio=3, num_heads=6, hidden_act="silu", depth=2,
                                  spatial_merge_size=3, temporal_patch_size=1, rope_parameters={"rope_theta": 500.0})
        },
        **_SHARED | merged(3, temporal=1),
    ),
    *(
        Case(model_type=name, changes={"vision_config": _WINDOWS}, **_QWEN2_5)
        for name in ("qwen2_5_vl", "qwen2_5_omni_thinker", "exaone4_5")
    ),
    *(
        Case(
            model_type=name,
            label=f"{name}-odd-windows",
            changes={
                "vision_config": dict(window_size=59, fullatt_block_indexes=[7, 0, -1], depth=3, spatial_merge_size=3,
                                      temporal_patch_size=3, hidden_act="gelu", out_hidden_size=40, hidden_size=48)
            },
            **_SHARED | merged(3, windows=59, temporal=3),
        )
        for name in ("qwen2_5_vl", "qwen2_5_omni_thinker")
    ),
    Case(
        model_type="exaone4_5",
        label="exaone4_5-one-group",
        changes={"vision_config": _WINDOWS | dict(num_key_value_heads=1, spatial_merge_size=4, window_size=50)},
        **_SHARED | merged(4, windows=50),
    ),
    Case(
        model_type="exaone4_5",
        label="exaone4_5-two-groups",
        changes={"vision_config": _WINDOWS | dict(num_key_value_heads=2, spatial_merge_size=1, window_size=24)},
        **_SHARED | merged(1, windows=24),
    ),
    Case(
        model_type="qwen2_5_omni",
        model="Qwen2_5OmniForConditionalGeneration",
        changes={"thinker_config": {"vision_config": _WINDOWS}, "enable_audio_output": False},
        **_QWEN2_5 | dict(tower="thinker.model.visual", connector=merger("thinker.model.visual.merger")),
    ),
    Case(
        model_type="hyperclovax_vision_v2",
        changes={"vision_config": _WINDOWS | dict(out_hidden_size=40)},
        **_QWEN2_5 | dict(tower="vision_model", connector=merger("vision_model.merger", "projector")),
    ),
    *(
        Case(model_type=name, changes={"vision_config": _DEEP}, **_QWEN3)
        for name in ("qwen3_vl", "qwen3_vl_moe", "cosmos3_omni", "qwen3_omni_moe_thinker")
    ),
    Case(
        model_type="cohere_compass",
        changes={"vision_config": _DEEP, "text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}},
        **_QWEN3,
    ),
    *(
        Case(
            model_type="qwen3_vl",
            label=f"qwen3_vl-merge-{merge}",
            changes={
                "vision_config": dict(num_position_embeddings=25, deepstack_visual_indexes=blocks, hidden_act="gelu",
                                      spatial_merge_size=merge, temporal_patch_size=temporal, out_hidden_size=40)
            },
            **_SHARED | merged(merge, temporal=temporal),
        )
        for merge, temporal, blocks in ((1, 1, [2, 0]), (3, 3, [9, 1, -1, 1]), (4, 2, []))
    ),
    Case(
        model_type="qwen3_omni_moe_thinker",
        label="qwen3_omni_moe_thinker-deep",
        changes={"vision_config": _TABLE | dict(deepstack_visual_indexes=[5, 2, 1], out_hidden_size=40)},
        **_QWEN3,
    ),
    Case(
        model_type="qwen3_omni_moe",
        model="Qwen3OmniMoeForConditionalGeneration",
        changes={"thinker_config": {"vision_config": _DEEP}, "enable_audio_output": False},
        **_QWEN3 | dict(tower="thinker.model.visual", connector=merger("thinker.model.visual.merger")),
    ),
    *(
        Case(model_type=name, changes={"vision_config": _TABLE}, **_QWEN3)
        for name in ("qwen3_5", "qwen3_5_moe", "qwen4_exp")
    ),
    Case(
        model_type="qwen3_5",
        label="qwen3_5-merge-4",
        changes={"vision_config": _TABLE | dict(spatial_merge_size=4, temporal_patch_size=1, hidden_act="relu")},
        **_SHARED | merged(4, temporal=1),
    ),
)  # fmt: skip
