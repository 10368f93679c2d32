"""Images inside other files: members of a tar shard, cells of a data set."""

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlm_vision.preprocess.images import ImageInput
from vlm_vision.preprocess.jpeg_file import decode_jpeg


class StoredImage(ABC):
    """Location of the bytes of an image. Hashable, cheap to pickle, holds no open file.

    `str(image)` is its name, equal in every run and different for every image; caches and errors use it.
    """

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def read(self) -> bytes:
        """The encoded image. Raises ValueError if it no longer exists."""

    def head(self, size: int) -> bytes:
        """The first bytes of the encoded image, at most `size`. Raises ValueError as `read`."""
        return self.read()[:size]

    @abstractmethod
    def version(self) -> str:
        """A text that changes with the image, without reading it. Raises ValueError as `read`."""


ImageSource = str | StoredImage
"""Path of an image file, or a stored image."""


def open_stored_images(images: Sequence[ImageSource]) -> list[ImageInput]:
    """Inputs of `encoder.preprocess`: paths stay, stored images are read and decoded.

    Raises:
        ValueError: a stored image that is missing, damaged, not an image or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    return [_decoded(one) if isinstance(one, StoredImage) else one for one in images]


def open_pixels(image: StoredImage) -> ImageInput:
    """Input of `encoder.preprocess` alone: an upright array (H, W, 3) where `decode_jpeg` gives one, else as `open_stored_images`.

    Raises:
        ValueError: as `open_stored_images`.
    """
    return _decoded(image, decode_jpeg)


def _decoded(
    stored: StoredImage, decode: Callable[[Image.Image], np.ndarray | None] = lambda image: None
) -> Image.Image | np.ndarray:
    data = stored.read()
    try:
        with warnings.catch_warnings():
            # Pillow warns above its limit and raises above twice that; here the limit is a limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if (pixels := decode(image)) is not None:
                return pixels
            image.load()
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost any type
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"image {stored} cannot be decoded ({reason}): expected a complete JPEG, PNG, WebP or the like of at most "
            "PIL.Image.MAX_IMAGE_PIXELS; replace it or leave the record out"
        ) from error
    return image
