"""Images that would be another image without a word: more than 8 bits, numbers of other ranges, thin or endless ones."""

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import make_image

from vlm_vision.preprocess.images import load_image, to_8_bits
from vlm_vision.preprocess.spec import Preprocess

SHADES = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)


def test_gray_of_16_bits_is_loaded_as_in_transformers_with_a_warning(tmp_path):
    Image.fromarray(SHADES).save(tmp_path / "depth.png")
    with pytest.warns(UserWarning, match=r"depth.png' is of mode I;16, and its values above 255 become white"):
        saturated = np.asarray(load_image(tmp_path / "depth.png"))
    assert (saturated[1:] == 255).all()
    scaled = to_8_bits(tmp_path / "depth.png")
    assert scaled.mode == "L" and np.array_equal(np.asarray(scaled), np.arange(256).reshape(16, 16))
    assert np.array_equal(np.asarray(to_8_bits(SHADES)), np.asarray(scaled))
    assert np.asarray(to_8_bits(torch.tensor([[0.0, 5.0, 10.0, 20.0]]), low=0, high=10)).tolist() == [
        [0, 128, 255, 255]
    ]
    load_image(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)))  # nothing is lost: no warning


@pytest.mark.parametrize(
    ("image", "options", "says"),
    [
        (make_image(), {}, "expected a gray image"),
        (SHADES, {"low": 3, "high": 3}, "low below high"),
        (np.full((2, 2), np.nan), {}, "finite"),
    ],
)
def test_what_cannot_be_scaled_is_refused(image, options, says):
    with pytest.raises(ValueError, match=says):
        to_8_bits(image, **options)


@pytest.mark.parametrize(
    ("values", "advice", "right"),
    [
        (
            np.linspace(0, 1, 12),
            "(image * 255).round().astype(np.uint8)",
            lambda image: (image * 255).round().astype(np.uint8),
        ),
        (np.linspace(0, 255, 12), "by image.round().astype(np.uint8)", lambda image: image.round().astype(np.uint8)),
        (np.arange(12) * 20, "by image.astype(np.uint8)", lambda image: image.astype(np.uint8)),
        (np.arange(12, dtype=np.uint16) * 5000, "to_8_bits(image, high=...)", None),
        (np.linspace(-1, 1, 12), "without negative values", None),
        (np.full(12, np.nan), "no finite numbers", None),
    ],
)
def test_the_advice_fits_the_values(values, advice, right):
    image = values.reshape(2, 2, 3)
    for given in (image, torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)):
        with pytest.raises(
            ValueError, match=re.escape(advice.removesuffix(".astype(np.uint8)") if given is not image else advice)
        ):
            load_image(given)
    if right is not None:
        load_image(right(image))


def test_a_thin_image_does_not_take_gigabytes():
    spec = Preprocess(
        resize="shortest_edge", resize_to=(224, 224), resample="bicubic", crop=(224, 224), rescale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3
    )  # fmt: skip
    with pytest.raises(ValueError, match="1x4000 pixels would be resized to 224x896000 before its crop: crop it"):
        spec(Image.new("RGB", (4000, 1)))
    assert spec(Image.new("RGB", (400, 2))).shape == (1, 3, 224, 224)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among files")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png' is no regular file"):
        load_image(tmp_path / "a.png")
