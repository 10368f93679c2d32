"""Pillow's resize of large 8-bit RGB images to the very byte, by products of whole numbers on a processor that has VNNI.

Pillow multiplies pixels by weights in 22 bit fractions, adds them up in 32 bits and rounds to 8, in one direction after the other
(python-pillow/Pillow, src/libImaging/Resample.c). Whole numbers have one sum in any order: here each weight is three signed bytes,
and a product of two matrices of bytes gives a few rows or columns at a time.

Which direction comes first depends on the sizes and on Pillow's version. So Pillow resizes the first two images of a size; the second
result is compared with both orders, and the images after it go the way that gave the same bytes, or to Pillow if none did.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_BITS = 22
"""Bits of a weight after the point."""
_ROWS, _FEW_ROWS, _FAR = 16, 8, 10.0
"""Rows of the result that one product gives; fewer where each has more than `_FAR` of the source, so that fewer weights are zero."""
_LEAST_SHRINK = {"bilinear": 8.0, "bicubic": 3.0}
"""Factor by which both sides shrink at least; below, Pillow is as fast."""
_LEAST_PIXELS = 400 * 400
_MOST_SIZES = 4096
"""Sizes that are remembered."""

Way = Literal["seen", "across", "down", "pillow"]
"""Of a size: seen once; rows first; columns first; by Pillow."""
_ways: "OrderedDict[tuple[int, int, int, int, str], Way]" = OrderedDict()


def resize_rgb(pixels: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    """uint8 (H, W, 3) -> (height, width, 3), as Pillow resizes with its filter of that name."""
    key = (pixels.shape[0], pixels.shape[1], *size, resample)
    way = _ways.get(key) if _suits(*key) else "pillow"
    if way == "across" or way == "down":
        return _resized(pixels, size, resample, way)
    result = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling[resample.upper()]))
    if way != "pillow":
        found = _way(pixels, size, resample, result) if way == "seen" else "seen"
        while len(_ways) >= _MOST_SIZES:
            _ways.popitem(last=False)
        _ways[key] = found
    return result


def _way(pixels: np.ndarray, size: tuple[int, int], resample: str, result: np.ndarray) -> Way:
    """The way that gives Pillow's result; "seen" for an image so flat that both do."""
    ways: tuple[Way, Way] = ("across", "down")
    equal: list[Way] = [way for way in ways if np.array_equal(_resized(pixels, size, resample, way), result)]
    if len(equal) == 2:
        return "seen"
    return equal[0] if equal else "pillow"


def _suits(height: int, width: int, to_height: int, to_width: int, resample: str) -> bool:
    """Whether products are faster than Pillow."""
    shrink = _LEAST_SHRINK.get(resample)
    if shrink is None or height * width < _LEAST_PIXELS or not _has_vnni():
        return False
    return height >= shrink * to_height and width >= shrink * to_width


@functools.cache
def _has_vnni() -> bool:
    """Whether the processor adds up products of bytes in 32 bits, and PyTorch lets it."""
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported())


def _resized(pixels: np.ndarray, size: tuple[int, int], resample: str, way: Way) -> np.ndarray:
    height, width = pixels.shape[:2]
    across, down = _bands(width, size[1], resample), _bands(height, size[0], resample)
    if way == "across":
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        np.bitwise_xor(planes, 128, out=planes)
        narrow = _reduced(planes.reshape(3 * height, width).T, across)
        np.bitwise_xor(narrow, 128, out=narrow)
        return _reduced(narrow.reshape(3 * size[1], height).T, down).reshape(*size, 3)
    low = _reduced((pixels ^ 128).reshape(height, 3 * width), down)
    np.bitwise_xor(low, 128, out=low)
    columns = low.reshape(size[0], width, 3).transpose(1, 0, 2).reshape(width, 3 * size[0])
    return np.ascontiguousarray(_reduced(columns, across).reshape(size[1], size[0], 3).transpose(1, 0, 2))


class _Band(NamedTuple):
    """Weights of neighboring rows of a result."""

    start: int
    """First row of the source that has weight."""
    weights: Tensor
    """(3 rows, source rows): int8, the lowest bytes of all rows, then the middle ones, then the highest."""
    rounding: Tensor
    """(rows, 1): int32, half of the last bit, and what signed pixels lack."""


def _reduced(values: np.ndarray, bands: tuple[_Band, ...]) -> np.ndarray:
    """uint8 (L, R), with the highest bit flipped, which makes it signed and 128 less -> (rows of all bands, R)."""
    signed = torch.from_numpy(values).view(torch.int8)
    results = []
    for start, weights, rounding in bands:
        low, middle, high = torch.ops.aten._int_mm(weights, signed[start : start + weights.shape[1]]).chunk(3)
        total = middle.add_(high, alpha=256).mul_(256).add_(low).add_(rounding)
        results.append(total.bitwise_right_shift_(_BITS).clamp_(0, 255).to(torch.uint8))
    return torch.cat(results).numpy()


@functools.lru_cache(maxsize=256)
def _bands(side: int, to: int, resample: str) -> tuple[_Band, ...]:
    """From `side` rows to `to`."""
    starts, weights = _weights(side, to, resample)
    reach, rows = np.arange(weights.shape[1]), _ROWS if side < _FAR * to else _FEW_ROWS
    bands = []
    for first in range(0, to, rows):
        own, places = weights[first : first + rows], starts[first : first + rows]
        start, end = int(places[0]), min(int(places[-1]) + len(reach), side)
        matrix = np.zeros((len(own), end - start + len(reach)), dtype=np.int64)
        np.put_along_axis(matrix, (places - start)[:, None] + reach, own, axis=1)
        matrix = matrix[:, : end - start]
        low = ((matrix + 128) & 255) - 128
        rest = (matrix - low) >> 8
        middle = ((rest + 128) & 255) - 128
        digits = np.concatenate([low, middle, (rest - middle) >> 8]).astype(np.int8)
        rounding = (128 * matrix.sum(axis=1, keepdims=True) + (1 << (_BITS - 1))).astype(np.int32)
        bands.append(_Band(start, torch.from_numpy(digits), torch.from_numpy(rounding)))
    return tuple(bands)


def _weights(side: int, to: int, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """First row of the source (to,) and weights from it on (to, rows), int64; in Pillow's order of operations."""
    kernel, reach = _FILTERS[resample]
    scale = side / to
    reach *= scale
    centers = (np.arange(to) + 0.5) * scale
    starts = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    ends = np.minimum((centers + reach + 0.5).astype(np.int64), side)
    places = np.arange(int((ends - starts).max()))
    values = kernel((places + starts[:, None] - centers[:, None] + 0.5) * (1.0 / scale))
    values = np.where(places < (ends - starts)[:, None], values, 0.0)
    values = values / np.cumsum(values, axis=1)[:, -1:]  # added up from left to right
    half = np.where(values < 0, -0.5, 0.5)
    return starts, (half + values * (1 << _BITS)).astype(np.int64)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}
"""Filter, and the distance at which it ends."""
