"""Patch tokens of images that were encoded before, as the collators read them."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from vlm_vision.data.stored_image import ImageSource


class PatchFeatures(Protocol):
    """Images to their patch tokens. It can be pickled, for the workers of a DataLoader."""

    def __getitem__(self, images: Sequence[ImageSource]) -> Tensor:
        """(len(images), N, D) in the stored dtype. Raises ValueError for an image whose tokens it lacks."""
        ...
