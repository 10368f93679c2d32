"""A source of images for a token store: what it lists, and how its images are opened."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vlm_vision.data.stored_image import StoredImage
from vlm_vision.preprocess.images import ImageInput


@dataclass(frozen=True)
class Item:
    """One image of a source. `place`, `start` and `size` locate it; only its source reads them."""

    key: str
    """Name of the image in the store, different for every image."""
    place: str = ""
    """File, URL or camera."""
    start: int = 0
    """Byte, row or frame at which it begins."""
    size: int = 0
    """Bytes; 0 if unknown."""
    label: int | str | None = None
    caption: str | None = None


Opened = ImageInput | StoredImage | ValueError
"""What `Source.images` gives for an item: an image, or its path or location, which is decoded later in another thread; or
the error of one that cannot be read."""


class Source(Protocol):
    """Images in an order that is the same in every run. It can be pickled."""

    def items(self) -> Iterator[Item]:
        """Every image, one at a time, so that memory does not grow with their number.

        Raises:
            ValueError: the source cannot be read, or has another form than expected.
        """
        ...

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        """The images of some items, which follow each other in `items()`; one for each, in order, read by one thread.

        Raises:
            UnreachableError: the source itself is gone: stop, and resume later.
        """
        ...

    def check(self) -> None:
        """Raise UnreachableError if the source itself is gone, so that its images are not taken for damaged ones."""
        ...
