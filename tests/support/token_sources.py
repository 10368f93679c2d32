"""Sources of images for the tests of the token store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_vision.data.shards.fetch import UnreachableError
from vlm_vision.tokens.source import Item, Opened


@dataclass(frozen=True)
class Files:
    """All files of a folder, by name."""

    folder: Path

    def items(self) -> Iterator[Item]:
        for i, path in enumerate(sorted(self.folder.iterdir())):
            yield Item(path.name, str(path), label=i, caption=f"image {i}")

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        return (item.place for item in items)

    def check(self) -> None:
        if not self.folder.is_dir():
            raise UnreachableError(f"the folder {self.folder} is gone: restore it, and run the same command again")


def write_images(folder: Path, count: int, *, size: tuple[int, int] = (40, 32), seed: int = 0) -> Files:
    """Images of noise as PNG files 000.png, 001.png, ...; sizes vary by some pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for i in range(count):
        height, width = size[0] + i % 3, size[1] + i % 5
        Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return Files(folder)
