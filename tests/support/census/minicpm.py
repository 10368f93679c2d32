"""MiniCPM-V 4.6 and its kin."""

from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from support.census.case import Case, Reference

PATCH = 8


def reference(tower: nn.Module, x: Tensor, *, merged: bool = True) -> Reference:
    """Patches of all images side by side in one row, and their grids; `merged` as downsample_mode "16x" of a whole model."""
    row = rearrange(x, "b c (h p) (w q) -> 1 c p (b h w q)", p=PATCH, q=PATCH)
    grids = torch.tensor([[x.shape[-2] // PATCH, x.shape[-1] // PATCH]] * len(x))
    tokens = tower(row, target_sizes=grids, use_vit_merger=merged).last_hidden_state[0]
    return Reference(tokens.unflatten(0, (len(x), -1)))


def connector(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return torch.stack(whole.merger(tokens.flatten(0, 1)[None], torch.tensor([grid] * len(tokens))))


def _case(model_type: str, label: str = "", after: int = 1, mode: str = "16x", **vision) -> Case:
    return Case(
        model_type=model_type,
        label=label,
        tower="vision_tower",
        reference=partial(reference, merged=mode == "16x"),
        sizes=((64, 64), (32, 96)),
        connector=connector,
        wide_connector=True,
        bare=mode == "16x",
        changes={"insert_layer_id": after, "downsample_mode": mode, "vision_config": {"patch_size": PATCH} | vision},
    )


CASES = (
    *(_case(name) for name in ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")),
    _case("minicpmv4_6", "minicpmv4_6: merger after the last block", after=2, hidden_act="gelu", layer_norm_eps=1e-4),
    _case("minicpmv4_6", "minicpmv4_6: no merger", after=-1),
    _case("minicpm_ocr", "minicpm_ocr: 4x", mode="4x"),
)
