"""The image that a tower sees, drawn again from its pixels, and its place in the original."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm_vision.preprocess.spec import Preprocess

_SHOWN = 1024
"""Longer side, in pixels, of an original in the page."""


def drawn(pixels: Tensor, preprocess: Preprocess) -> Image.Image:
    """Pixels (3, H, W) of `preprocess` as an 8-bit image: normalization undone, rounded, cut to 0..255."""
    return Image.fromarray(_values(pixels, preprocess).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def thumbnail(image: Image.Image) -> Image.Image:
    """The original, at most as large as the page shows it."""
    shown = image.copy()
    shown.thumbnail((_SHOWN, _SHOWN))
    return shown


def place(image: Image.Image, preprocess: Preprocess) -> dict[str, Any] | None:
    """Where the processed image lies in the original, measured by sending images of known content through `preprocess`.

    Returns:
        box: left, top, right, bottom of the processed image in pixels of the original, outside of it where it is padded;
        padding: pixels that are padding on the left, top, right and bottom. None where the steps depend on the image's
        content, so that no measurement is possible.
    """
    if preprocess.standardize:
        return None
    width, height = image.size
    across = np.broadcast_to(_ramp(width, height)[..., None], (height, width, 3))
    down = np.broadcast_to(_ramp(height, width).T[..., None], (height, width, 3))
    plain = replace(preprocess, mean=(0, 0, 0), std=(1, 1, 1), rescale=1.0)
    black, white = (plain(Image.new("RGB", image.size, color))[0, 0] for color in ("black", "white"))
    inside = (black - white).abs() > 200
    if not bool(inside.any()):
        return None
    rows, columns = (inside.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    top, bottom, left, right = (int(edge) for edge in (rows[0], rows[-1], columns[0], columns[-1]))
    x = _line(
        plain(Image.fromarray(np.ascontiguousarray(across)))[0, 0][top : bottom + 1, left : right + 1].mean(dim=0),
        left,
        width,
    )
    y = _line(
        plain(Image.fromarray(np.ascontiguousarray(down)))[0, 0][top : bottom + 1, left : right + 1].mean(dim=1),
        top,
        height,
    )
    tall, wide = black.shape
    box = [x[0], y[0], x[0] + wide * x[1], y[0] + tall * y[1]]
    return {
        "box": [round(edge, 2) for edge in box],
        "padding": [left, top, wide - 1 - right, tall - 1 - bottom],
    }


def _ramp(size: int, rows: int) -> np.ndarray:
    """(rows, size) uint8 that grow from 0 to 255, rounded in each row otherwise, so that means of rows are finer than a level."""
    offsets = np.arange(rows)[:, None] * 0.6180339887 % 1
    return np.floor(np.linspace(0, 255, size)[None] + offsets).clip(0, 255).astype(np.uint8)


def _line(levels: Tensor, first: int, size: int) -> tuple[float, float]:
    """Coordinate in the original of the processed image's edge, and of one of its pixels the width, by least squares.

    Args:
        levels: means of a ramp from 0 to 255 over the original, at the processed pixels from `first`.
        size: pixels of the original along the ramp.
    """
    if len(levels) < 2 or size < 2:
        return 0.0, size / max(1, len(levels))
    centers = levels.double().numpy() / 255 * (size - 1) + 0.5
    inner = slice(len(centers) // 8, len(centers) - len(centers) // 8)  # filters flatten the ramp at its ends
    at = np.arange(first, first + len(centers)) + 0.5
    slope, start = np.polyfit(at[inner], centers[inner], 1)
    return float(start), float(slope)


def _values(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (preprocess.mean, preprocess.std))
    return (pixels.float() * std + mean) / preprocess.rescale
