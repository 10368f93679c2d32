"""OpenCV's INTER_AREA on 8 bits, to the very byte: the means of pixels where an image shrinks, else between neighbors.

GR00T's checkpoints that were trained with Albumentations resize so. Written from the rules of `cv::resize` in OpenCV 4 (opencv/opencv,
modules/imgproc/src/resize.cpp): float32 sums in its order, or whole numbers with 11 bits of weight.
"""

import math

import numpy as np

_BITS = 11
"""Bits of a weight between neighbors."""


def resize_area(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) -> (height, width, C), uint8."""
    if pixels.shape[:2] == size:
        return pixels
    scales = [1.0 / (to / side) for to, side in zip(size, pixels.shape[:2], strict=True)]
    if min(scales) < 1:
        return _between(pixels, size, scales)
    whole = [round(scale) for scale in scales]
    if all(abs(scale - n) < np.finfo(float).eps for scale, n in zip(scales, whole, strict=True)):
        return _blocks(pixels, size, whole)
    columns = _means(pixels.astype(np.float32), 1, size[1], scales[1])
    return np.clip(np.rint(_means(columns, 0, size[0], scales[0])), 0, 255).astype(np.uint8)


def _blocks(pixels: np.ndarray, size: tuple[int, int], whole: list[int]) -> np.ndarray:
    """Means of blocks of whole pixels."""
    (height, width), (tall, wide) = size, whole
    rows = pixels[: height * tall, : width * wide].reshape(height, tall, width, wide, -1)
    total = rows.sum(axis=(1, 3), dtype=np.int32)
    if whole == [2, 2]:
        return ((total + 2) >> 2).astype(np.uint8)
    return np.rint(total.astype(np.float32) * np.float32(1.0 / (tall * wide))).astype(np.uint8)


def _means(pixels: np.ndarray, axis: int, to: int, scale: float) -> np.ndarray:
    """Means along one axis; a pixel that lies partly in a mean has a part of its weight. Summed pixel by pixel."""
    side, shares = pixels.shape[axis], []
    for place in range(to):
        start, end = place * scale, place * scale + scale
        width = min(scale, side - start)
        last = min(math.floor(end), side - 1)
        first = min(math.ceil(start), last)
        own = [(first - 1, (first - start) / width)] if first - start > 1e-3 else []
        own += [(source, 1.0 / width) for source in range(first, last)]
        if end - last > 1e-3:
            own.append((last, min(min(end - last, 1.0), width) / width))
        shares.append(own)
    total = np.float32(0)
    for k in range(max(map(len, shares))):  # one more pixel of each mean; past its last one with weight 0
        source, weight = zip(*(own[k] if k < len(own) else (0, 0.0) for own in shares), strict=True)
        weights = np.array(weight, dtype=np.float32)
        total = total + pixels.take(source, axis) * (weights[:, None] if axis == 1 else weights[:, None, None])
    return np.asarray(total)


def _between(pixels: np.ndarray, size: tuple[int, int], scales: list[float]) -> np.ndarray:
    """Between neighbors, where an image grows in one direction at least."""
    low, high, first, second = _neighbors(pixels.shape[1], size[1], scales[1], clamped=True)
    wide = pixels.astype(np.int32)
    wide = wide.take(low, 1) * first[:, None] + wide.take(high, 1) * second[:, None]
    low, high, first, second = _neighbors(pixels.shape[0], size[0], scales[0], clamped=False)
    above, below = (
        (wide.take(rows, 0) >> 4) * weight[:, None, None] >> 16 for rows, weight in ((low, first), (high, second))
    )
    return np.clip((above + below + 2) >> 2, 0, 255).astype(np.uint8)


def _neighbors(
    side: int, to: int, scale: float, *, clamped: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each place the pixel before it and the one after, and their weights in 1/2048; the last pixel has all where clamped."""
    place = np.arange(to)
    low = np.floor(place * scale).astype(int)
    part = ((place + 1) - (low + 1) * (to / side)).astype(np.float32)
    part = np.where(part <= 0, np.float32(0), part - np.floor(part))
    if clamped:
        part = np.where(low >= side - 1, np.float32(0), part)
    first, second = (np.rint(share * np.float32(1 << _BITS)).astype(np.int32) for share in (np.float32(1) - part, part))
    return np.minimum(low, side - 1), np.minimum(low + 1, side - 1), first, second
