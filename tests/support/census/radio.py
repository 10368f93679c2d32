"""RADIO, alone and inside Nemotron Omni."""

from torch import Tensor, nn

from support.census.case import Case, Reference


def radio(tower: nn.Module, x: Tensor) -> Reference:
    """Its tokens of normalized pixels: what it would do to them itself is undone."""
    statistics = tower.input_conditioner
    if hasattr(statistics, "norm_mean"):
        x = x * statistics.norm_std + statistics.norm_mean
    return Reference(tower(x).features)


def connector(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return whole.project_vision_features(tokens, *grid)


_SHARED = dict(reference=radio, connector=connector, wide_connector=True, sizes=((64, 64), (32, 96), (128, 64)))

CASES = (
    Case(
        model_type="nemotron_h_omni",
        tower="vision_model",
        model="NemotronH_Omni_Reasoning_V3",
        changes={
            "vision_config": {"max_img_size": 128, "video_temporal_patch_size": 2},
            "text_config": {"num_hidden_layers": 2},
            "vision_hidden_size": 64,
        },
        **_SHARED,
    ),
    Case(
        model_type="nemotron_h_omni",
        label="nemotron_h_omni, gated",
        tower="vision_model",
        model="NemotronH_Omni_Reasoning_V3",
        changes={
            "vision_config": dict(
                max_img_size=96, video_temporal_patch_size=2, use_swiglu_ffn=True, qkv_bias=False, num_cls_tokens=2,
                summary_idxs=[1], mlp_ratio=3.3,
            ),
            "text_config": {"num_hidden_layers": 2, "num_nextn_predict_layers": 1},
            "vision_hidden_size": 64,
        },
        **_SHARED,
    ),
)  # fmt: skip
