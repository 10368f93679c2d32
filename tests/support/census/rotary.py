"""Towers with rotary positions of their own kind: Llama 4, Step 3.7, Inkling 2, Muse, Kimi K2.5, MiniMax M3."""

from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from support.census.case import Case, Reference
from support.census.inputs import grid_thw

PATCH = 8


def input_of(tower: nn.Module, layer: str, **inputs) -> Tensor:
    """What the tower gives to one of its layers."""
    seen = []
    hook = getattr(tower, layer).register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    tower(**inputs)
    hook.remove()
    return seen[0]


def llama4(tower: nn.Module, x: Tensor) -> Reference:
    return Reference(input_of(tower, "vision_adapter", pixel_values=x))


def step3p7(tower: nn.Module, x: Tensor) -> Reference:
    return Reference(input_of(tower, "downsampler1", pixel_values=x).flatten(2).mT)


def squares(x: Tensor, merge: int, patch: int = PATCH) -> tuple[Tensor, Tensor]:
    """Inkling's rows, one for each square of patches, (N, merge * patch, merge * patch, C), and their grid."""
    side = merge * patch
    rows = rearrange(x, "b c (h p) (w q) -> (b h w) p q c", p=side, q=side)
    return rows, torch.tensor([[1, x.shape[2] // side, x.shape[3] // side]] * len(x))


def inkling2(tower: nn.Module, x: Tensor, *, merge: int = 2) -> Reference:
    rows, grid = squares(x, merge)
    out = tower(pixel_values=rows, image_grid_thw=grid).last_hidden_state.unflatten(0, (len(x), -1))[:, 1:]
    _, h, w = grid[0].tolist()
    return Reference(rearrange(out, "b (h w i j) d -> b (h i w j) d", h=h, w=w, i=merge, j=merge))


def muse(tower: nn.Module, x: Tensor, *, temporal: int = 2) -> Reference:
    """Patches in raster order; frames before channels, as in the image processor."""
    if x.ndim == 4:
        x = x[:, None].expand(-1, temporal, -1, -1, -1)
    rows = rearrange(x, "b (t f) c (h p) (w q) -> (b t h w) (f c p q)", f=temporal, p=PATCH, q=PATCH)
    grid = torch.tensor([[x.shape[1] // temporal, x.shape[3] // PATCH, x.shape[4] // PATCH]] * len(x))
    tokens = []
    hook = tower.ln_post.register_forward_hook(lambda module, given, out: tokens.append(out))
    tower(pixel_values=rows, grid_thw=grid)
    hook.remove()
    return Reference(tokens[0].unflatten(0, (len(x), -1)))


def kimi(tower: nn.Module, x: Tensor) -> Reference:
    x = x[:, None] if x.ndim == 4 else x
    rows = rearrange(x, "b t c (h p) (w q) -> (b t h w) c p q", p=PATCH, q=PATCH)
    grid = torch.tensor([[x.shape[1], x.shape[3] // PATCH, x.shape[4] // PATCH]] * len(x))
    return Reference(tower(rows, grid_thw=grid).last_hidden_state.unflatten(0, (len(x), -1)))


def minimax(tower: nn.Module, x: Tensor, *, merge: int = 2, temporal: int = 2) -> Reference:
    class Flat(nn.Module):
        def forward(self, **inputs):
            out = tower(**inputs)
            out.last_hidden_state = out.last_hidden_state[0]
            return out

    return grid_thw(merge=merge, temporal=temporal, names=("pixel_values", "grid_thw"))(Flat(), x)


def in_squares(tokens: Tensor, grid: tuple[int, int], merge: int) -> Tensor:
    """(B * N, D) in squares of merge x merge tokens."""
    h, w = grid
    return rearrange(tokens, "b (h i w j) d -> (b h w i j) d", h=h // merge, i=merge, w=w // merge, j=merge)


def of_llama4(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return whole.multi_modal_projector(whole.vision_model.vision_adapter(tokens))


def of_step3p7(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    tower = whole.vision_model
    x = tower.downsampler2(tower.downsampler1(tokens.mT.unflatten(2, grid)))
    return whole.multi_modal_projector(x.flatten(2).mT)


def of_inkling2(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    merge = whole.config.vision_config.spatial_merge_size
    rows = in_squares(tokens, grid, merge).unflatten(0, (-1, merge**2)).flatten(1)
    return whole.vision_tower.merger(rows).unflatten(0, (len(tokens), -1))


def of_muse(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    x = whole.vision_tower.pixel_shuffle(tokens.flatten(0, 1), torch.tensor([[1, *grid]] * len(tokens)))
    x = whole.perception_emb_norm(whole.vision_projection(whole.vision_adapter(x)))
    return x.unflatten(0, (len(tokens), -1))


def of_kimi(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    x = whole.vision_tower.temporal_merge(tokens.flatten(0, 1), torch.tensor([[1, *grid]] * len(tokens)), 2, 2)
    return whole.mm_projector(x)[:, 0].unflatten(0, (len(tokens), -1))


def of_minimax(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    rows = in_squares(tokens, grid, whole.config.vision_config.spatial_merge_size)
    return whole.multi_modal_projector(rows).unflatten(0, (len(tokens), -1))


_CONNECTORS = {
    "llama4": of_llama4, "step3p7": of_step3p7, "inkling2": of_inkling2, "muse": of_muse, "kimi": of_kimi,
    "minimax": of_minimax,
}  # fmt: skip
_WIDE = ((64, 64), (48, 112))
_LLAMA4 = dict(intermediate_size=256, projector_input_dim=40, projector_output_dim=40, vision_output_dim=40)
_MUSE = dict(pos_emb_height=4, pos_emb_width=4, layer_types=["window_attention", "full_attention", "window_attention"])
_KIMI = dict(pos_emb_height=6, pos_emb_width=6)


def _case(model_type: str, tower: str, reference, label: str = "", **vision) -> Case:
    kind = model_type.split("_")[0]
    frames = {"muse": 4, "kimi": 3, "minimax": 4}.get(kind, 0)
    sizes = ((64, 64),) if model_type == "llama4" else _WIDE
    around = {"audio_config": {"num_hidden_layers": 4, "hidden_sizes": [16] * 4}} if model_type == "muse_spark" else {}
    around |= {"out_hidden_size": 256, "projector_hidden_size": 48} if kind == "muse" else {}
    around |= {"projection_hidden_size": 64} if kind == "kimi" else {}
    return Case(
        connector=_CONNECTORS[kind], wide_connector=model_type != "llama4",
        model_type=model_type, label=label, tower=tower, reference=reference, sizes=sizes, frames=frames,
        changes=around | ({"vision_config": vision} if vision else {}),
    )  # fmt: skip


CASES = (
    _case("llama4", "vision_model", llama4, **_LLAMA4),
    _case("step3p7", "vision_model", step3p7),
    _case("step3p7", "vision_model", step3p7, "step3p7, wide", mlp_ratio=1.7, hidden_act="gelu", image_size=48),
    _case("inkling2", "vision_tower", inkling2, posemb_grid_size=6),
    _case("inkling2_loop", "vision_tower", inkling2, posemb_grid_size=8),
    _case("inkling2", "vision_tower", partial(inkling2, merge=1), "inkling2, one by one", spatial_merge_size=1),
    _case("muse_glimmer", "vision_tower", muse, **_MUSE),
    _case("muse_glimmer", "vision_tower", partial(muse, temporal=1), "muse_glimmer, one frame", **_MUSE, patch_temporal=1),
    _case("muse_glimmer", "vision_tower", muse, "muse_glimmer, outer epsilon", **_MUSE, layer_norm_eps=1e-2),
    _case("muse_spark", "vision_tower", muse, **_MUSE),
    _case("kimi_k25", "vision_tower", kimi, **_KIMI),
    _case("kimi_k25", "vision_tower", kimi, "kimi_k25, wide heads", **_KIMI, num_attention_heads=2, hidden_act="gelu"),
    _case("minimax_m3_vl", "vision_tower", minimax),
    _case("minimax_m3_vl", "vision_tower", minimax, "minimax_m3_vl, two heads", num_attention_heads=2),
    _case(
        "minimax_m3_vl", "vision_tower", partial(minimax, merge=1, temporal=1), "minimax_m3_vl, one frame",
        spatial_merge_size=1, temporal_patch_size=1, num_attention_heads=1,
    ),
)  # fmt: skip
