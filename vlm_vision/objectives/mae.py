"""MAE: error of the predicted pixels of masked patches."""

import torch
from torch import Tensor

from vlm_vision.objectives.processes import in_float32


def patches(pixels: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, N, patch_size**2 * C), patches in reading order, values by row, column, channel."""
    batch, channels, height, width = pixels.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"pixels are {height}x{width}, expected multiples of the patch size {patch_size}: resize or pad them"
        )
    cells = pixels.unflatten(2, (-1, patch_size)).unflatten(4, (-1, patch_size))  # (B, C, h, p, w, q)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size**2 * channels)


@in_float32
def mae_loss(predicted: Tensor, pixels: Tensor, mask: Tensor, *, patch_size: int, normalize: bool = True) -> Tensor:
    """Mean square error of the predicted pixels over masked patches.

    He et al. 2022, "Masked autoencoders are scalable vision learners", section 3.

    Args:
        predicted: (B, N, patch_size**2 * C), in the order of `patches`.
        pixels: (B, C, H, W), preprocessed.
        mask: (B, N), True (or 1) where a patch was masked; equally many in every process.
        normalize: each patch's pixels minus their mean, divided by their standard deviation (norm_pix_loss).
    """
    target = patches(pixels, patch_size)
    if normalize:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    each = (predicted - target).square().mean(dim=-1)
    return (each * mask).sum() / mask.sum()
