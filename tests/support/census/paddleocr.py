"""PaddleOCR-VL and VideoLLaMA 3, whose patches lie row by row."""

import torch
from einops import rearrange
from torch import Tensor, nn

from support.census.case import Case, Reference


def rows_of(*, patch: int = 8, flat: bool):
    """Patches (N, C, p, p) with an axis before, or flattened with the sides of the merged squares, here 1."""

    def reference(tower: nn.Module, x: Tensor) -> Reference:
        x = x if x.ndim == 5 else x[:, None]
        b, t, _, h, w = x.shape
        rows = rearrange(x, "b t c (h p) (w q) -> (b t h w) c p q", p=patch, q=patch)
        given = dict(grid_thw=torch.tensor([[t, h // patch, w // patch]] * b))
        if flat:
            given |= dict(pixel_values=rows.flatten(1), merge_sizes=torch.ones(b, dtype=torch.long))
        else:
            given |= dict(pixel_values=rows[None])
        return Reference(tower(**given).last_hidden_state.unflatten(0, (b, -1)))

    return reference


def projected(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return whole.projector(tokens.flatten(0, 1), torch.tensor([[1, *grid]] * len(tokens))).unflatten(
        0, (len(tokens), -1)
    )


_PADDLE = dict(tower="visual", reference=rows_of(flat=False), connector=projected, wide_connector=True, frames=3)
_LLAMA = dict(
    tower="vision_model",
    reference=rows_of(flat=True),
    connector=lambda whole, tokens, grid: whole.projector(tokens),
    wide_connector=True,
    frames=3,
)

CASES = (
    Case(
        model_type="paddleocr_vl",
        changes={"vision_config": dict(image_size=48)},
        sizes=((64, 64), (48, 112)),
        **_PADDLE,
    ),
    Case(
        model_type="paddleocr_vl",
        label="paddleocr_vl-merge-3",
        changes={
            "vision_config": dict(
                image_size=90, spatial_merge_size=3, hidden_act="gelu", layer_norm_eps=1e-3, num_attention_heads=2
            )
        },
        sizes=((48, 48), (24, 72)),
        **_PADDLE,
    ),
    Case(model_type="video_llama_3", sizes=((64, 64), (40, 112)), **_LLAMA),
    Case(
        model_type="video_llama_3",
        label="video_llama_3-silu",
        changes={"vision_config": dict(hidden_act="silu", layer_norm_eps=1e-3, rope_parameters={"rope_theta": 100.0})},
        sizes=((64, 64), (40, 112)),
        **_LLAMA,
    ),
)
