"""Images and videos of a listing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from vlm_vision.tokens.source import Item, Opened
from vlm_vision.tokens.sources.listings import FileList
from vlm_vision.tokens.sources.places import is_video, opened_image
from vlm_vision.tokens.sources.videos import frame_items, frames


@dataclass(frozen=True)
class Files:
    """Image files, and every n-th frame of videos: `video/frame`.

    Args:
        listing: list of the files.
        every: distance of the frames of a video.
    """

    listing: FileList
    every: int = 1

    def items(self) -> Iterator[Item]:
        for one in self.listing.files():
            yield from file_items(one.key, one.path, self.every)

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        yield from file_images(items)

    def check(self) -> None:
        self.listing.check()


def file_items(
    key: str, path: str, every: int, label: int | str | None = None, caption: str | None = None
) -> Iterator[Item]:
    """The item of an image file, or those of a video."""
    if is_video(path):
        yield from frame_items(key, path, every, label, caption)
    else:
        yield Item(key, path, label=label, caption=caption)


def file_images(items: Sequence[Item]) -> Iterator[Opened]:
    """The images of items of `file_items`."""
    for path, group in groupby(items, key=lambda item: item.place):
        if is_video(path):
            yield from frames(path, list(group))
        else:
            yield from (opened_image(path) for _ in group)
