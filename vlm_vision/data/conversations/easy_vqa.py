"""The easy-VQA data set (PyPI `easy-vqa`, MIT): its questions, and descriptions computed from its images."""

from typing import Any

import numpy as np
from PIL import Image

COLORS = {
    "black": (0, 0, 0), "gray": (128, 128, 128), "red": (255, 0, 0), "blue": (0, 0, 255), "teal": (0, 128, 128),
    "green": (0, 255, 0), "yellow": (255, 255, 0), "brown": (165, 42, 42),
}  # fmt: skip
FORMS = ((0.94, "rectangle"), (0.72, "circle"), (0.0, "triangle"))
"""Smallest share of its bounding box that a form fills."""
SIZES = ((20, "small"), (30, "medium"), (65, "large"))
"""Longest side of a form in pixels, and the word for sizes up to it."""
BACKGROUND = 60
"""Difference in gray levels, of any channel, between the form and the background."""


def paths(split: str) -> dict[int, str]:
    """Id of an image -> its file. Raises ValueError: the package is not installed, or a split it does not have."""
    package = _package(split)
    return package.get_train_image_paths() if split == "train" else package.get_test_image_paths()


def questions(split: str) -> list[tuple[str, str, int]]:
    """Question, answer, id of its image. Raises ValueError as `paths`."""
    package = _package(split)
    return list(
        zip(*(package.get_train_questions() if split == "train" else package.get_test_questions()), strict=True)
    )


def captioned_images(split: str) -> list[tuple[str, str, str]]:
    """Path, caption and class ("blue circle") of every image, by `describe`. Raises ValueError as `paths`."""
    described = []
    for path in paths(split).values():
        with Image.open(path) as image:
            described.append((path, *describe(np.asarray(image.convert("RGB")))))
    return described


def describe(pixels: np.ndarray) -> tuple[str, str]:
    """Caption and class of an image (H, W, 3), uint8, with one form of one color on a plain background.

    Size, color, form and place are measured ("a small blue circle at the top left"): answers to questions are not used.
    """
    behind = np.median(pixels.reshape(-1, 3), axis=0)
    inside = (np.abs(pixels.astype(int) - behind) > BACKGROUND).any(-1)
    rows, columns = np.nonzero(inside)
    seen = np.median(pixels[inside], axis=0)
    off = {name: np.abs(seen - value).sum() for name, value in COLORS.items()}
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    form = next(name for least, name in FORMS if len(rows) / (height * width) >= least)
    size = next(name for limit, name in SIZES if max(height, width) <= limit)
    down, across = (rows.min() + rows.max()) / 2 / len(pixels), (columns.min() + columns.max()) / 2 / pixels.shape[1]
    vertical, horizontal = _third(down, ("top", "", "bottom")), _third(across, ("left", "", "right"))
    place = " ".join(word for word in (vertical, horizontal) if word)
    kind = f"{min(off, key=off.__getitem__)} {form}"
    return f"a {size} {kind} {f'at the {place}' if place else 'in the middle'}", kind


def _third(where: float, words: tuple[str, str, str]) -> str:
    return words[min(2, int(where * 3))]


def _package(split: str) -> Any:
    try:
        import easy_vqa as package  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("easy-VQA is not installed: pip install 'vlm-vision[demo]'") from None
    if split not in ("train", "test"):
        raise ValueError(f"easy-VQA has no split {split!r}: expected 'train' or 'test'")
    return package
