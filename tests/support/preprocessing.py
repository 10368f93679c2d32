"""Preprocessing specs of every kind, and images for them."""

import dataclasses

import numpy as np

from vlm_vision.preprocess.spec import Preprocess

SQUASH = Preprocess(
    resize="squash",
    resize_to=(28, 42),
    resample="bicubic",
    crop=None,
    rescale=1 / 255,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


CROPPED = dataclasses.replace(
    SQUASH,
    resize="shortest_edge",
    resize_to=(45, 45),
    crop=(40, 40),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


WHOLE = dataclasses.replace(SQUASH, resize="none", resize_to=(0, 0), rescale=1.0, mean=(0, 0, 0), std=(1, 1, 1))
"""Leaves the image as it is."""


SPECS = [
    SQUASH,
    CROPPED,
    WHOLE,
    dataclasses.replace(CROPPED, crop=None, resample="lanczos"),
    dataclasses.replace(SQUASH, crop=(30, 20), resample="hamming"),
    dataclasses.replace(WHOLE, crop=(30, 60), rescale=1 / 127.5, mean=(1, 1, 1), resample="nearest"),
]


BUDGETED = CROPPED.with_budget(max_patches=12, patch_size=14)


FLOAT = dataclasses.replace(SQUASH, kernel="float", resample="bilinear")


LETTERBOX = dataclasses.replace(SQUASH, resize="letterbox", resize_to=(30, 30), fill=(127, 127, 128))


EVEN = dataclasses.replace(CROPPED, crop_rounding="half_even")


SIZES = [(37, 53), (201, 31), (31, 200), (1, 57), (57, 1), (9, 8), (40, 40)]


def make_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
