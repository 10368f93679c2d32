"""Preprocessing of the image processors that came with today's towers, against transformers' own PIL classes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from vlm_vision.checkpoints.hf.preprocess import from_hf, to_hf

SHAPES = ((40, 60), (97, 31), (150, 300))


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("processor", "options"),
    [
        (GotOcr2ImageProcessorPil, dict(size={"height": 48, "width": 48})),
        (GotOcr2ImageProcessorPil, dict(size={"height": 32, "width": 48}, image_mean=[0.485, 0.456, 0.406])),
        (Ovis2ImageProcessorPil, dict(size={"height": 48, "width": 48})),
        (PixtralImageProcessorPil, {}),
        (PixtralImageProcessorPil, dict(size={"longest_edge": 64}, patch_size=14)),
        (PixtralImageProcessorPil, dict(size={"height": 64, "width": 90}, patch_size={"height": 28, "width": 28})),
    ],
)
def test_pixels_are_those_of_the_class(processor, options, shape):
    theirs = processor(**options)
    described = json.loads(theirs.to_json_string())
    spec = from_hf(described | {"image_processor_type": processor.__name__})
    expected = theirs(picture(*shape), return_tensors="pt").pixel_values[0]
    pixels = spec(picture(*shape))[0]
    assert pixels.shape == expected.shape
    torch.testing.assert_close(pixels, expected, rtol=0, atol=2e-6)
    again = from_hf(to_hf(spec))
    assert again == dataclasses.replace(spec)
