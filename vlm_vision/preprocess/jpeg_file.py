"""JPEG files by simplejpeg where it is installed: the same libjpeg-turbo as Pillow's, hence the same pixels, with fewer copies of them."""

import importlib
from types import ModuleType

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin


def _simplejpeg() -> ModuleType | None:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


decoder = _simplejpeg()
"""None where Pillow decodes all files."""


def decode_jpeg(opened: Image.Image) -> np.ndarray | None:
    """Pixels of an image that Pillow has opened but not decoded, upright: uint8 (H, W, 3).

    None where Pillow has to decode: other formats and modes, files that are damaged, decoders set up by `draft`.
    """
    if decoder is None or type(opened) is not JpegImagePlugin.JpegImageFile or opened.mode != "RGB":
        return None
    if not opened.tile or opened.fp is None:  # decoded already
        return None
    orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    opened.fp.seek(0)
    try:
        pixels = decoder.decode_jpeg(opened.fp.read(), "RGB")
    except ValueError:
        return None
    if pixels.shape != (opened.height, opened.width, 3):
        return None
    return np.ascontiguousarray(_upright(pixels, orientation))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The image turned as its EXIF orientation (TIFF 6.0, tag 274) says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
