"""Sources of images in tests: what they list, and what they open."""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_vision.data.stored_image import open_stored_images
from vlm_vision.preprocess.images import load_image
from vlm_vision.tokens.source import Item, Source
from vlm_vision.tokens.sources.choose import open_sources
from vlm_vision.tokens.sources.options import SourceOptions


def png(value: int) -> bytes:
    """An image of one gray value."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def put(file: Path, data: bytes | str) -> Path:
    """Write a file, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


def opened(sources: Sequence[str | Path] | str | Path, **options) -> Source:
    """The source, after a way through pickle."""
    listed = [sources] if isinstance(sources, str | Path) else sources
    return pickle.loads(pickle.dumps(open_sources([str(one) for one in listed], SourceOptions(**options))))


def keys(source: Source) -> list[str]:
    return [item.key for item in source.items()]


def grays(source: Source, items: Sequence[Item] | None = None) -> list[int | str]:
    """Mean gray value of each image, or the error of one."""
    items = list(source.items()) if items is None else items
    found = []
    for one in source.images(items):
        try:
            if isinstance(one, ValueError):
                raise one
            found.append(round(float(np.asarray(load_image(open_stored_images([one])[0])).mean())))  # pyright: ignore
        except ValueError as error:
            found.append(str(error))
    assert len(found) == len(items)
    return found
