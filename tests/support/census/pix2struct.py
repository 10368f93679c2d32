"""Pix2Struct and Kosmos-2.5."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from support.census.case import Case, Reference

PATCH = 8


def reference(tower: nn.Module, x: Tensor) -> Reference:
    """Rows of patches, each after the numbers of its row and column, from 1."""
    patches = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=PATCH, q=PATCH)
    places = torch.cartesian_prod(*(torch.arange(1.0, 1 + n // PATCH) for n in x.shape[-2:]))
    rows = torch.cat([places.expand(len(x), -1, -1), patches], dim=-1)
    return Reference(tower(rows).last_hidden_state)


def latents(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Kosmos-2.5's projection of tokens of length 1."""
    return whole.image_to_text_projection(F.normalize(tokens, dim=-1))[0]


def _case(model_type: str, tower: str, label: str = "", model: str = "", **vision) -> Case:
    return Case(
        model_type=model_type,
        label=label,
        model=model,
        tower=tower,
        reference=reference,
        connector=latents if model_type == "kosmos-2.5" else None,
        wide_connector=True,
        changes={"vision_config": {"patch_embed_hidden_size": 3 * PATCH**2, "hidden_size": 64} | vision},
    )


_MODEL = "Pix2StructForConditionalGeneration"

CASES = (
    _case("pix2struct", "encoder", model=_MODEL, d_kv=16, seq_len=40),
    _case("pix2struct", "encoder", "pix2struct: wide heads", _MODEL, d_kv=24, seq_len=16, dense_act_fn="gelu"),
    _case("kosmos-2.5", "vision_model", head_dim=24, max_num_patches=40, dense_act_fn="silu"),
)
