"""ERNIE 4.5 VL and dots3: patches of one frame."""

import torch
from torch import Tensor, nn

from support.census.case import Case
from support.census.inputs import grid_thw, merger, squares


def resampled(merge: int = 2):
    """The resampler, on images."""

    def connector(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        sizes = torch.tensor([[1, *grid]] * len(tokens))
        return whole.resampler_model(squares(tokens, grid, merge), sizes).unflatten(0, (len(tokens), -1))

    return connector


_ERNIE = dict(tower="vision_tower", wide_connector=True, frames=3)
_ERNIE_TEXT = dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=[32, 16], head_dim=16,
                   rope_parameters={"rope_type": "default", "rope_theta": 5e5, "mrope_section": [3, 3, 2]})  # fmt: skip
_DOTS3 = dict(tower="vision_tower", wide_connector=True, frames=3)
_DENSE = dict(mlp_layer_types=["dense"] * 3, per_layer_config={}, adapter_in_dim=64, adapter_out_dim=64)
_BESIDE = dict(
    text_config=dict(per_layer_config={}, layer_types=["indexed_attention"] * 3, num_key_value_heads=4, q_lora_rank=16,
                     kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, index_head_dim=16,
                     index_n_heads=2, rope_parameters=None),
    audio_config=dict(adapter_input_size=64, adapter_out_dim=64, num_key_value_heads=4, feature_size=16,
                      downsample_hidden_size=16),
)  # fmt: skip

CASES = (
    Case(
        model_type="ernie4_5_vl_moe",
        changes={"text_config": _ERNIE_TEXT},
        reference=grid_thw(temporal=1),
        connector=resampled(),
        sizes=((64, 64), (48, 112)),
        **_ERNIE,
    ),
    Case(
        model_type="ernie4_5_vl_moe",
        label="ernie4_5_vl_moe-merge-3",
        changes={
            "text_config": _ERNIE_TEXT | dict(rms_norm_eps=1e-3),
            "vision_config": dict(spatial_merge_size=3, hidden_act="gelu", rms_norm_eps=1e-2, num_heads=2, depth=2),
        },
        reference=grid_thw(merge=3, temporal=1),
        connector=resampled(3),
        sizes=((48, 48), (24, 72)),
        **_ERNIE,
    ),
    Case(
        model_type="dots3_note",
        changes=_BESIDE | {"vision_config": _DENSE},
        reference=grid_thw(temporal=1, names=("pixel_values", "grid_thw")),
        connector=merger("vision_tower.merger"),
        sizes=((64, 64), (48, 112)),
        **_DOTS3,
    ),
    Case(
        model_type="dots3_note",
        label="dots3_note-biased",
        changes=_BESIDE | {
            "vision_config": _DENSE | dict(attention_bias=True, mlp_bias=True, hidden_act="gelu", rms_norm_eps=1e-3,
                                           spatial_merge_size=3, adapter_merge_size=3, num_attention_heads=2)
        },
        reference=grid_thw(merge=3, temporal=1, names=("pixel_values", "grid_thw")),
        connector=merger("vision_tower.merger", merge=3),
        sizes=((48, 48), (24, 72)),
        **_DOTS3,
    ),
)  # fmt: skip
