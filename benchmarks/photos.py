"""JPEG files of 1 to 2 megapixels, like photos, for benchmarks: the same files for the same seed."""

import importlib
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data_speed import smooth_noise

_SIZES = ((1024, 1024), (1440, 1080), (1080, 1440), (1152, 1536), (1200, 1600))
_PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")


def write_photos(folder: Path, number: int, seed: int = 0) -> str:
    """Write 00000.jpg and so on; returns what they are made of, in words."""
    draw, (photos, kind) = np.random.default_rng(seed), _originals()
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        height, width = _SIZES[i % len(_SIZES)]
        pixels = _cut(photos[i % len(photos)], height, width, draw)
        Image.fromarray(pixels).save(folder / f"{i:05d}.jpg", quality=90)
    sizes = [path.stat().st_size for path in folder.glob("*.jpg")]
    return f"{number} JPEG files of {kind}, 1.0 to 1.9 megapixels, quality 90, {np.mean(sizes) / 1e3:.0f} kB each"


def _originals() -> tuple[list[np.ndarray], str]:
    try:
        data = importlib.import_module("skimage.data")
    except ImportError:
        return [smooth_noise(np.random.default_rng(i), 700) for i in range(4)], "smooth noise"
    return [getattr(data, name)()[..., :3] for name in _PHOTOS], "parts of scikit-image's photos"


def _cut(photo: np.ndarray, height: int, width: int, draw: np.random.Generator) -> np.ndarray:
    """A part of a photo, enlarged by 1 to 1.8 and mirrored at its edges."""
    grown = Image.fromarray(photo)
    factor = draw.uniform(1, 1.8)
    large = np.asarray(grown.resize((int(grown.width * factor), int(grown.height * factor)), Image.Resampling.BICUBIC))
    rows, columns = (
        _mirrored(side, to, int(draw.integers(side))) for side, to in zip(large.shape, (height, width), strict=False)
    )
    return np.ascontiguousarray(large[rows][:, columns])


def _mirrored(side: int, to: int, start: int) -> np.ndarray:
    """`to` places along `side` from `start` on, back and forth."""
    places = (start + np.arange(to)) % (2 * side)
    return np.minimum(places, 2 * side - 1 - places)
