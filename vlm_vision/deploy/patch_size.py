"""Another patch size for a trained encoder: the patch embedding resized as in FlexiViT.

Beyer et al. 2022, FlexiViT: One Model for All Patch Sizes (arXiv:2212.08013), section 3.4. Let B be the linear map that
resizes a patch. The new weights w' are those whose product with a resized patch is nearest to that of the old weights w
with the patch: w' = w B+, B+ the pseudo-inverse of B (least squares over patches of white noise). When patches grow, the
product is equal. Same kernel as timm's `resample_patch_embed`: bicubic with antialiasing.
"""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.encoder import Encoder
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.position import Grid, PositionTable, once
from vlm_vision.preprocess.spec import Preprocess


@torch.inference_mode(False)
def with_patch_size(encoder: Encoder, patch_size: int, *, image_size: int | tuple[int, int] | None = None) -> Encoder:
    """A new encoder for patches of another size; `encoder` stays as it is and shares no weights with it.

    Args:
        encoder: one tower.
        patch_size: pixels along a patch's side.
        image_size: native side, or (height, width), in pixels. Default: the native grid, hence the position table, stays,
            and the native image is the grid times patch_size. With another grid the table is resized by the encoder's
            own rule.

    Returns:
        An encoder in the mode (training or evaluation) of `encoder`. Its preprocessing makes images of image_size,
        or by default of as many patches as before; one whose images have any size keeps the size (a budget of patches
        keeps the number of patches), rounded to as many patches as before.

    Raises:
        ValueError: several towers; a size that is not a positive whole number, or smaller than a patch; a table that its
            rule cannot resize; preprocessing that rounds to other than whole patches.
    """
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"with_patch_size takes one tower, got {type(encoder).__name__}: pass each of the towers, and fuse the results"
        )
    old = encoder.config
    if old.temporal_patch > 1 or old.position == "axes" or old.window_padding:
        raise ValueError(
            "the patch size changes for towers of images with one table of positions or rotary ones: this one has a temporal "
            "patch, tables for rows and columns, or padded windows"
        )
    if image_size is None:
        rows, columns = old.grid
        size = (rows * patch_size, columns * patch_size)
    else:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
    new = replace(old, patch_size=patch_size, image_size=size)
    made = copy.deepcopy(encoder)
    model = made.model
    assert isinstance(model.patch_embed, nn.Conv2d)
    model.patch_embed = _conv(model.patch_embed, new)
    if isinstance(model.position, PositionTable) and new.grid != model.position.grid:
        model.position = _positions(model.position, new.grid)
        new = replace(new, position_resize=once(old.position_resize))
    model.config = new
    made.preprocess = _preprocess(encoder.preprocess, old, new, by_grid=image_size is None)
    return made


def resize_patch_embedding(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights (D, C, h, w) of a patch embedding for patches of size (h', w') -> (D, C, h', w'), in their own dtype."""
    old = (weight.shape[-2], weight.shape[-1])
    if old == size:
        return weight.detach().clone()
    inverse = torch.linalg.pinv(_resize_matrix(old, size)).to(weight.device)  # (h w, h' w')
    resized = weight.detach().to(torch.float64).flatten(2) @ inverse
    return resized.unflatten(-1, size).to(weight.dtype)


def _resize_matrix(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """B, (h' w', h w) in float64: column i is the i-th unit patch, resized."""
    units = torch.eye(old[0] * old[1], dtype=torch.float64).unflatten(1, (1, *old))
    return F.interpolate(units, size=new, mode="bicubic", antialias=True, align_corners=False).flatten(1).T


def _conv(conv: nn.Conv2d, config: ViTConfig) -> nn.Conv2d:
    side = config.patch_size
    with torch.device("meta"):
        made = nn.Conv2d(config.channels, config.embed_dim, side, side, bias=conv.bias is not None)
    weight = resize_patch_embedding(conv.weight, (side, side))
    made.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    if conv.bias is not None:
        made.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=conv.bias.requires_grad)
    return made.train(conv.training)


def _positions(table: PositionTable, grid: Grid) -> PositionTable:
    """A table whose native grid is `grid`, with the rows that `table` gives for it, which its rule moves no more there."""
    learned = table.table.requires_grad
    with torch.device("meta"):
        made = PositionTable(
            prefix=table.prefix, grid=grid, dim=table.table.shape[-1], resize=once(table.resize), learned=learned
        )
    with torch.no_grad():
        made.table = nn.Parameter(torch.cat(table(grid), dim=1), requires_grad=learned)
    return made.train(table.training)


def _preprocess(preprocess: Preprocess, old: ViTConfig, new: ViTConfig, *, by_grid: bool) -> Preprocess:
    if preprocess.patch_size:
        preprocess = replace(
            preprocess,
            patch_size=_scaled("patch_size", preprocess.patch_size, old, new),
            multiple=_scaled("multiple", preprocess.multiple, old, new),
        )
    if preprocess.max_patches:
        return preprocess
    if not by_grid:
        size = new.image_size
    elif preprocess.output_size is not None:
        rows, columns = old.grid_of(*preprocess.output_size)
        size = (rows * new.patch_size, columns * new.patch_size)
    else:
        return preprocess
    try:
        return preprocess.at(*size)
    except ValueError:  # images of any size, now and before
        return preprocess


def _scaled(field: str, pixels: int, old: ViTConfig, new: ViTConfig) -> int:
    """As many patches as before, in pixels."""
    if pixels % old.patch_size:
        raise ValueError(
            f"the preprocessing has {field} {pixels}, which is no whole number of patches of {old.patch_size} pixels: set "
            "encoder.preprocess to one that is"
        )
    return pixels // old.patch_size * new.patch_size
