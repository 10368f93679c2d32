"""Two of TensorFlow's resizes in numpy, float32 in its order of operations: Lanczos with antialiasing, crop and resize."""

from functools import lru_cache

import numpy as np

_ONE = np.float32(1)


def lanczos3(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, C) -> uint8 (height, width, C): `tf.image.resize(method="lanczos3", antialias=True)`, rounded to even.

    The op ScaleAndTranslate of TensorFlow: pixel centers at halves, the kernel as wide as the reduction, weights outside
    the image left out and the others made to sum to one; each column of the image first, then each row. numpy sums in
    the same order; a few sines differ in their last bit, hence about one value in a million by one.
    """
    resized = _along_rows(pixels.astype(np.float32), *_spans(pixels.shape[0], height))
    resized = _along_rows(np.ascontiguousarray(resized.swapaxes(0, 1)), *_spans(pixels.shape[1], width)).swapaxes(0, 1)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def center_crop(pixels: np.ndarray, area: float, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, C) -> uint8 (height, width, C): the middle `area` of the image, 0..1, enlarged.

    Sides times sqrt(area), `tf.image.crop_and_resize` (bilinear between the four nearest, corners on corners) of values in
    0..1, and back to 8 bits by `tf.image.convert_image_dtype`, which rounds down 255.5 times the value.
    """
    side = np.sqrt(np.float32(area))
    start = (_ONE - side) / np.float32(2)
    values = pixels.astype(np.float32) * np.float32(1 / 255)
    low, high, weight = _between(pixels.shape[0], start, start + side, height)
    left, right, across = _between(pixels.shape[1], start, start + side, width)
    first = values.take(left, axis=1)
    rows = first + (values.take(right, axis=1) - first) * across[:, None]
    top = rows[low]
    mixed = np.clip(top + (rows[high] - top) * weight[:, None, None], 0, 1)
    return (mixed * np.float32(255.5)).astype(np.uint8)


def _along_rows(pixels: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of rows: (H, W, C) -> (to, W, C). Row i begins at first[i]; weights (to, taps), zeros at the end."""
    total = np.zeros((len(first), *pixels.shape[1:]), dtype=np.float32)
    for tap in range(weights.shape[1]):
        rows = np.minimum(first + tap, len(pixels) - 1)
        total += pixels[rows] * weights[:, tap, None, None]
    return total


@lru_cache(maxsize=32)
def _spans(size: int, to_size: int) -> tuple[np.ndarray, np.ndarray]:
    """For every pixel of the result the first that it reads, (to_size,), and the weights from there on, (to_size, taps)."""
    inverse = _ONE / (np.float32(to_size) / np.float32(size))
    reach = np.maximum(inverse, _ONE)
    radius = np.float32(3) * reach
    center = (np.arange(to_size, dtype=np.float32) + np.float32(0.5)) * inverse
    first = np.maximum(np.ceil(center - radius - np.float32(0.5)), 0).astype(int)
    last = np.minimum(np.floor(center + radius - np.float32(0.5)), size - 1).astype(int)
    places = first[:, None] + np.arange((last - first).max() + 1)
    distance = np.abs(places.astype(np.float32) + np.float32(0.5) - center[:, None]) * (_ONE / reach)
    weights = np.where(places <= last[:, None], _kernel(distance), np.float32(0))
    total = np.zeros(to_size, dtype=np.float32)
    for tap in range(weights.shape[1]):
        total += weights[:, tap]
    return first, weights * (_ONE / total)[:, None]


def _kernel(x: np.ndarray) -> np.ndarray:
    """Lanczos's window of radius 3 at distances x: sinc(x) sinc(x / 3)."""
    safe = np.maximum(x, np.float32(1e-3))
    pi = np.float32(np.pi)
    inside = np.float32(3) * _sine(pi * safe) * _sine(pi * safe / np.float32(3)) / (pi * pi * safe * safe)
    return np.where(x > 3, np.float32(0), np.where(x <= np.float32(1e-3), _ONE, inside)).astype(np.float32)


def _sine(x: np.ndarray) -> np.ndarray:
    """Rounded once, as the C library's for float32 nearly always is; numpy's own for float32 is coarser."""
    return np.sin(x.astype(np.float64)).astype(np.float32)


def _between(size: int, start: np.float32, end: np.float32, to_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pixel of the result: the pixels before and after its place, and the weight of the second, (to_size,)."""
    last = np.float32(size - 1)
    step = (end - start) * last / np.float32(to_size - 1)
    place = start * last + np.arange(to_size, dtype=np.float32) * step
    low, high = np.floor(place), np.minimum(np.ceil(place), last)
    return low.astype(int), high.astype(int), place - low
