"""Preprocessing of the image processors that came with today's towers, against transformers' own PIL classes."""

import ast
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from vlm_vision.checkpoints.hf.preprocess import from_hf
from vlm_vision.checkpoints.hf.write_preprocess import to_hf

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


def function(model: str, name: str) -> Any:
    """A function of a file of transformers that needs torchvision for its others."""
    path = Path(transformers.__file__).parent / f"models/{model}/image_processing_{model}.py"
    tree = ast.parse(path.read_text())
    body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    space: dict[str, Any] = {"math": math, "itertools": itertools}
    exec(compile(ast.Module(body, []), str(path), "exec"), space)
    return space[name]


SIZES = [(h, w) for h in (1, 13, 40, 97, 333, 1200, 5000) for w in (1, 27, 56, 150, 777, 2100, 9000)]


@pytest.mark.parametrize("options", [{}, dict(max_patches=60, size={"max_height": 20, "max_width": 20}, merge_size=3)])
def test_sizes_of_kimi(options):
    spec, sizes = (
        from_hf({"image_processor_type": "Kimi_K25ImageProcessor"} | options),
        function("kimi_k25", "navit_resize"),
    )
    merge = options.get("merge_size", 2)
    for height, width in SIZES:
        inner, outer = sizes(height, width, 14, merge, spec.max_patches, spec.resize_to[0] // 14)
        assert spec.resized(height, width) == inner
        assert tuple(-(-side // spec.multiple) * spec.multiple for side in inner) == outer


@pytest.mark.parametrize("most", [4096, 30, 3])
def test_sizes_of_muse(most):
    spec = from_hf({"image_processor_type": "MuseGlimmerImageProcessor", "max_image_tokens": most})
    sizes = function("muse_glimmer", "smart_resize")
    for height, width in SIZES:
        assert spec.resized(height, width) == sizes(height, width, 28, most)


@pytest.mark.parametrize(
    "options", [{}, dict(min_num_patches=20, max_num_patches=90, downsample_ratio=1 / 3, patch_size=8)]
)
def test_sizes_of_nemotron_omni(options):
    spec = from_hf({"image_processor_type": "NemotronH_Omni_Reasoning_V3ImageProcessor"} | options)
    sizes, patch = function("nemotron_h_omni", "get_patch_grid_size"), spec.patch_size
    for height, width in SIZES:
        try:
            rows, columns = sizes(height, width, patch, spec.multiple // patch, *spec.resize_to)
        except ZeroDivisionError:
            with pytest.raises(ValueError, match="does not keep one patch"):
                spec.resized(height, width)
            continue
        assert spec.resized(height, width) == (rows * patch, columns * patch)


def test_inkling_fills_up_with_one_below_black():
    spec = from_hf({"image_processor_type": "Inkling2ImageProcessor", "size": {"height": 40, "width": 40}})
    pixels = spec(picture(45, 80))
    assert pixels.shape == (1, 3, 80, 80)
    outside = (-1 / 255 - 0.5) / 0.5
    torch.testing.assert_close(pixels[..., 45:, :], torch.full((1, 3, 35, 80), outside))
    inside = torch.from_numpy(np.asarray(picture(45, 80)).copy()).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(pixels[..., :45, :], (inside - 0.5) / 0.5)


def test_kimi_fills_up_with_black_after_shrinking():
    spec = from_hf({"image_processor_type": "Kimi_K25ImageProcessor"})
    pixels = spec(picture(45, 80))
    assert pixels.shape == (1, 3, 56, 84) and bool((pixels[..., 45:, :] == -1).all())
    inside = torch.from_numpy(np.asarray(picture(45, 80)).copy()).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(pixels[..., :45, :80], (inside - 0.5) / 0.5, rtol=0, atol=1e-6)


def test_minimax_reads_the_size_of_its_public_file_as_its_default():
    plain = from_hf({"image_processor_type": "MiniMaxM3VLImageProcessor"})
    assert from_hf({"image_processor_type": "MiniMaxM3VLImageProcessor", "size": [672, 672]}) == plain
    assert plain.resize_to == (3136, 451584)


@pytest.mark.parametrize(
    "described",
    [
        dict(image_processor_type="Kimi_K25ImageProcessor", max_patches=60, merge_size=3),
        dict(image_processor_type="MuseGlimmerImageProcessor", max_image_tokens=30),
        dict(image_processor_type="NemotronH_Omni_Reasoning_V3ImageProcessor", min_num_patches=20, patch_size=14),
        dict(image_processor_type="Inkling2ImageProcessor", size={"height": 28, "width": 28}),
    ],
)
def test_classes_without_a_pil_twin_are_written_back(described):
    spec = from_hf(described)
    again = to_hf(spec, patch_size=14)
    assert again["image_processor_type"] == described["image_processor_type"] and from_hf(again) == spec
