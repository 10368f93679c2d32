"""How transformers' towers are called: one function for each kind of input, from pixels to tokens in raster order."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from support.census.case import Reference


def pixels(*, prefix: int = 0, resize: bool = True, **options: Any) -> Callable[[nn.Module, Tensor], Reference]:
    """Towers that take (B, C, H, W) and give `prefix` tokens before the patches."""

    def reference(tower: nn.Module, x: Tensor) -> Reference:
        more = {"interpolate_pos_encoding": True} if resize else {}
        return Reference(tower(x, **more, **options).last_hidden_state[:, prefix:])

    return reference


def connector(name: str) -> Callable[[nn.Module, Tensor, tuple[int, int]], Tensor]:
    """The module of that name in the whole model, which takes patch tokens and gives (B, M, E) or (B, h, w, E)."""

    def project(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        out = attrgetter(name)(whole)(tokens)
        return out.reshape(len(tokens), -1, out.shape[-1])

    return project


def naflex(*, patch: int = 8, **options: Any) -> Callable[[nn.Module, Tensor], Reference]:
    """SigLIP 2's towers of any size, which take rows of patches, their mask and their grid."""

    def reference(tower: nn.Module, x: Tensor) -> Reference:
        rows = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
        shapes = torch.tensor([[x.shape[-2] // patch, x.shape[-1] // patch]] * len(x))
        mask = torch.ones(rows.shape[:2], dtype=torch.long)
        return Reference(tower(rows, pixel_attention_mask=mask, spatial_shapes=shapes, **options).last_hidden_state)

    return reference


def flat_patches(x: Tensor, patch: int, merge: int, temporal: int) -> tuple[Tensor, Tensor]:
    """Qwen's rows of patches, in squares of merge x merge, and grid_thw, of images or videos."""
    if x.ndim == 4:
        x = x[:, None].expand(-1, temporal, -1, -1, -1)
    b, t, _, h, w = x.shape
    rows = rearrange(
        x, "b (t f) c (h i p) (w j q) -> (b t h w i j) (c f p q)", f=temporal, i=merge, j=merge, p=patch, q=patch
    )
    grid = torch.tensor([[t // temporal, h // patch, w // patch]] * b)
    return rows, grid


def raster(rows: Tensor, grid: Tensor, merge: int) -> Tensor:
    """(B, t * h * w, D) in raster order, of rows in squares of merge x merge."""
    t, h, w = grid[0].tolist()
    return rearrange(
        rows, "(b t h w i j) d -> b (t h i w j) d", b=len(grid), t=t, h=h // merge, w=w // merge, i=merge, j=merge
    )


def squares(tokens: Tensor, grid: tuple[int, int], merge: int) -> Tensor:
    """Rows in squares of merge x merge, the inverse of `raster`."""
    return rearrange(tokens, "b (h i w j) d -> (b h w i j) d", h=grid[0] // merge, w=grid[1] // merge, i=merge, j=merge)


def merger(*names: str, merge: int = 2) -> Callable[[nn.Module, Tensor, tuple[int, int]], Tensor]:
    """Connectors that take rows in squares of merge x merge: the modules of these names, one after the other."""

    def connector(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        x = squares(tokens, grid, merge)
        for name in names:
            x = attrgetter(name)(whole)(x)
        return x.unflatten(0, (len(tokens), -1))

    return connector


def grid_thw(
    *,
    merge: int = 2,
    temporal: int = 2,
    patch: int = 8,
    names: tuple[str, str] = ("hidden_states", "grid_thw"),
    windows: int = 0,
) -> Callable[[nn.Module, Tensor], Reference]:
    """Towers of native resolution, called as Qwen's. The tokens are those of last_hidden_state.

    With `windows`, their side in pixels, transformers leaves last_hidden_state in the order of the windows: it is undone.
    """

    def reference(tower: nn.Module, x: Tensor) -> Reference:
        rows, grid = flat_patches(x, patch, merge, temporal)
        out = tower(**{names[0]: rows, names[1]: grid})
        rows = out.last_hidden_state.flatten(0, -2)
        if windows:
            order, _ = get_vision_window_index(grid, merge, windows, patch)
            rows = rows.unflatten(0, (-1, merge * merge))[order.argsort()].flatten(0, 1)
        deep = getattr(out, "deepstack_features", None) or ()
        return Reference(
            raster(rows, grid, merge),
            tuple(rearrange(d, "(b m) e -> b m e", b=len(grid)) for d in deep),
        )

    return reference
