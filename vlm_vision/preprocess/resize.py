"""The steps of `vlm_vision.preprocess` on one image: sizes, resampling, bars, crops."""

import math
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

from vlm_vision.preprocess.blur import resize_blurred
from vlm_vision.preprocess.pillow_resize import resize_rgb

ResampleFilter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
CropRounding = Literal["floor", "half_even", "truncated"]
CropPlace = Literal["centre", "top_left", "bottom_right"]
Kernel = Literal[
    "pillow", "float", "point", "point_float", "point_rounded", "torch", "torchvision", "gaussian", "blurred"
]
RGB = tuple[float, float, float]
KERNEL_FILTERS: dict[str, tuple[str, ...]] = {
    "pillow": get_args(ResampleFilter),
    "float": ("bilinear", "bicubic"),
    "point": ("bilinear",),
    "point_float": ("bilinear",),
    "point_rounded": ("bilinear",),
    "gaussian": ("bilinear",),
    "blurred": ("bilinear",),
    "torch": ("nearest", "lanczos", "bilinear", "bicubic"),
    "torchvision": ("bilinear", "bicubic"),
}
"""Kernel -> filters that it has."""


def crop_offset(size: int, crop: int, rounding: CropRounding) -> int:
    """Pixels from the edge of an image of `size` to its center crop; negative where the crop is larger."""
    if rounding == "half_even" and crop < size:
        return round((size - crop) / 2)
    return -((crop - size) // 2) if rounding != "floor" and crop > size else (size - crop) // 2


def crop_array(
    pixels: np.ndarray, crop: tuple[int, int], fill: RGB, rounding: CropRounding, place: CropPlace = "centre"
) -> np.ndarray:
    """A part of (H, W, 3), with `fill` outside the image."""
    (height, width), (crop_height, crop_width) = pixels.shape[:2], crop
    top, left = crop_offset(height, crop_height, rounding), crop_offset(width, crop_width, rounding)
    if place != "centre":
        top, left = (height - crop_height, width - crop_width) if place == "bottom_right" else (0, 0)
    inside = pixels[max(top, 0) : top + crop_height, max(left, 0) : left + crop_width]
    if inside.shape[:2] == crop:
        return inside
    whole = all(value == int(value) >= 0 for value in fill)
    canvas = np.full((*crop, 3), fill, dtype=pixels.dtype if whole else np.float32)
    row, column = max(-top, 0), max(-left, 0)
    canvas[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return canvas


def with_bars(pixels: np.ndarray, fill: RGB) -> np.ndarray:
    """(H, W, 3) with equal bars on both sides of the shorter edge: square, or one pixel short of it."""
    edge = max(pixels.shape[:2])
    height, width = (side + 2 * ((edge - side) // 2) for side in pixels.shape[:2])
    return crop_array(pixels, (height, width), fill, "floor")


def as_image(pixels: np.ndarray) -> Image.Image | np.ndarray:
    """8-bit pixels (H, W, 3) as an image of Pillow; others as they are."""
    return Image.fromarray(np.ascontiguousarray(pixels)) if pixels.dtype == np.uint8 else pixels


def size_within_budget(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """(height, width) by a bisection for the scale, with the bounds and the tolerance of transformers' Siglip2 image
    processor, which timm's NaFlex shares; another tolerance gives other sizes."""

    def patches(side: int, scale: float) -> int:
        return max(1, math.ceil(side * scale / patch_size))

    tolerance = 1e-5
    fits, too_large = tolerance / 10, 100.0
    while too_large - fits >= tolerance:
        scale = (fits + too_large) / 2
        if patches(height, scale) * patches(width, scale) <= max_patches:
            fits = scale
        else:
            too_large = scale
    return patches(height, fits) * patch_size, patches(width, fits) * patch_size


def size_of_area(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """(height, width): multiples of `factor` with an area from `least` to `most`, as near to the image's size as that allows.

    Written in the order of transformers' smart_resize, for the same floating point result.

    Raises:
        ValueError: an image whose longer side is more than 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"an image of {height}x{width} pixels has one side more than 200 times the other: crop it")
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if tall * wide > most:
        scale = math.sqrt((height * width) / most)
        return max(factor, int(height / scale / factor) * factor), max(factor, int(width / scale / factor) * factor)
    if tall * wide < least:
        scale = math.sqrt(least / (height * width))
        return math.ceil(height * scale / factor) * factor, math.ceil(width * scale / factor) * factor
    return tall, wide


def enlarged(height: int, width: int, side: int, how: str) -> tuple[int, int]:
    """(height, width) of an image without a side below `side`, by the rule of resize `how` in `Preprocess`.

    Written in the order of transformers' Glm4v and PaddleOCRVL image processors, for the same floating point result.
    """
    if how == "floored_area" and min(height, width) < side:
        scale = max(side / height, side / width)
        return int(height * scale), int(width * scale)
    if how == "rounded_area" and height < side:
        height, width = side, round(width * side / height)
    if how == "rounded_area" and width < side:
        height, width = round(height * side / width), side
    return height, width


def size_on_canvas(
    height: int, width: int, square: int, least: int, most: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of an image, and of the whole squares that it lies on, whose area is from `least` to `most`.

    Written in the order of transformers' Glm5Next image processor, for the same floating point result.
    """

    def whole(side: int) -> int:
        return -(-side // square) * square

    tall, wide = whole(height), whole(width)
    if tall * wide < least:
        scale = math.sqrt(least / (height * width))
        tall, wide = whole(max(1, math.ceil(height * scale))), whole(max(1, math.ceil(width * scale)))
    if tall * wide > most:
        tall, wide = square, square
        low, high = 1, height
        while low <= high:  # the tallest image whose canvas is small enough
            middle = (low + high) // 2
            canvas = whole(middle), whole(max(1, math.floor(width * middle / height)))
            if canvas[0] * canvas[1] <= most:
                (tall, wide), low = canvas, middle + 1
            else:
                high = middle - 1
    scale = min(tall / height, wide / width)
    if height * width >= least:
        scale = min(1.0, scale)
    size = max(1, min(tall, math.floor(height * scale))), max(1, min(wide, math.floor(width * scale)))
    return size, (tall, wide)


def size_filling(height: int, width: int, square: int, most: int) -> tuple[int, int]:
    """(height, width) of an image scaled to the area of `most` squares, each side rounded down to whole squares.

    Written in the order of transformers' Gemma4 image processor, for the same floating point result.

    Raises:
        ValueError: an image so narrow that no square fits.
    """
    scale = math.sqrt(most * square**2 / (height * width))
    tall, wide = math.floor(scale * height / square), math.floor(scale * width / square)
    if tall == 0 and wide == 0:
        raise ValueError(f"an image of {height}x{width} pixels does not fill one square of {square} pixels: enlarge it")
    if tall == 0:
        tall, wide = 1, min(width // height, most)
    elif wide == 0:
        tall, wide = min(height // width, most), 1
    return tall * square, wide * square


def size_in_rows_and_columns(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """(height, width) of an image scaled to the area of `most` patches, each side rounded down to at least one patch.

    Written in the order of transformers' Pix2Struct image processor, for the same floating point result.
    """
    scale = (most * (patch / height) * (patch / width)) ** 0.5
    return tuple(max(min(int(scale * side / patch), most), 1) * patch for side in (height, width))  # type: ignore[return-value]


def size_near_area(height: int, width: int, square: int, edge: int) -> tuple[int, int]:
    """(height, width) of an image scaled to the area of edge x edge pixels, each side rounded to whole squares.

    Written in the order of transformers' MiniCPM-V image processor, for the same floating point result.
    """
    ratio = width / height
    tall = int(edge / math.sqrt(ratio))
    wide = int(tall * ratio)
    return max(round(tall / square) * square, square), max(round(wide / square) * square, square)


def resize_array(
    image: Image.Image | np.ndarray, size: tuple[int, int], resample: ResampleFilter, kernel: Kernel
) -> np.ndarray:
    """(H, W, 3) of `size` in 0..255: uint8, or float32 for the kernels that do not round, which take that too."""
    if kernel == "pillow":
        return resize_rgb(np.asarray(image), size, resample)
    if kernel == "gaussian":
        pixels = np.asarray(image, dtype=np.float64)
        rows, columns = (_smoothed(*sides) for sides in zip(pixels.shape, size, strict=False))
        return np.einsum("ih,hwc,jw->ijc", rows, pixels, columns, optimize=True).astype(np.float32)
    if kernel == "blurred":
        return resize_blurred(np.asarray(image), size)
    if kernel == "torch" and resample == "nearest":
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        return torch.nn.functional.interpolate(planes, size, mode="nearest-exact")[0].permute(1, 2, 0).numpy()
    if kernel == "torch" and resample == "lanczos" and not hasattr(torch.ops.aten, "_upsample_lanczos2d_aa"):
        raise ValueError(
            f"kernel 'torch' with filter 'lanczos' needs torch 2.12 or newer, and this is {torch.__version__}: install that"
        )
    if kernel in ("float", "point_float", "point_rounded", "torch", "torchvision"):
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        planes = planes if kernel == "torch" else planes.float()
        smooth = kernel in ("float", "torch", "torchvision")
        planes = torch.nn.functional.interpolate(planes, size, mode=resample, align_corners=False, antialias=smooth)
        planes = planes.clamp(0, 255).round().byte() if kernel in ("point_rounded", "torchvision") else planes
        return planes[0].permute(1, 2, 0).numpy()
    # a + (b - a) * weight in float32 keeps a flat area at its very value, which truncation would else lower by one
    pixels = np.asarray(image, dtype=np.float32)
    for axis in (1, 0):
        low, high, weight = _neighbors(pixels.shape[axis], size[axis])
        first, second = pixels.take(low, axis), pixels.take(high, axis)
        pixels = first + (second - first) * (weight[:, None] if axis == 1 else weight[:, None, None])
    return pixels.astype(np.uint8)


def _neighbors(size: int, to_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pixel of the result: the pixels before and after its center, and the weight of the second, (to_size,)."""
    center = (np.arange(to_size, dtype=np.float32) + np.float32(0.5)) * np.float32(size / to_size) - np.float32(0.5)
    below = np.floor(center)
    low, high = np.maximum(below, 0).astype(int), np.minimum(np.ceil(center), size - 1).astype(int)
    return low, high, center - below


def _smoothed(size: int, to_size: int) -> np.ndarray:
    """(to_size, size): a Gauss filter of deviation (size / to_size - 1) / 2, cut at four of it, then linear interpolation.

    Pixels past an edge are mirrored at the last one: scipy.ndimage's gaussian_filter and zoom with mode "mirror".
    """
    step = size / to_size
    deviation = max(0.0, (step - 1) / 2)

    def mirrored(places: np.ndarray) -> np.ndarray:
        period = max(2 * (size - 1), 1)
        places = np.abs(places) % period
        return np.where(places > size - 1, period - places, places)

    centers = mirrored((np.arange(to_size) + 0.5) * step - 0.5)
    low = np.minimum(np.floor(centers).astype(int), max(size - 2, 0))
    weight, near = centers - low, np.arange(to_size)
    linear = np.zeros((to_size, size))
    np.add.at(linear, (near, low), 1 - weight)
    np.add.at(linear, (near, np.minimum(low + 1, size - 1)), weight)
    if deviation < 1e-15:
        return linear
    reach = int(4 * deviation + 0.5)
    offsets = np.arange(-reach, reach + 1)
    bell = np.exp(-0.5 * (offsets / deviation) ** 2)
    smooth = np.zeros((size, size))
    rows = np.arange(size)[:, None]
    np.add.at(smooth, (np.broadcast_to(rows, (size, len(bell))), mirrored(rows + offsets)), bell / bell.sum())
    return linear @ smooth
