"""Image processors of models around CLIP's and SigLIP's kin: pixels equal to those of transformers' own classes."""

from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from PIL import Image

from vlm_vision.checkpoints.hf.preprocess import from_hf
from vlm_vision.checkpoints.hf.write_preprocess import to_hf

SHAPES = [(61, 47), (300, 211), (97, 331)]
"""(height, width) in pixels."""


def photo(height: int, width: int) -> Image.Image:
    """Smooth colors with noise."""
    rng = np.random.default_rng(height)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(rows / (7 + i)) * np.cos(columns / (5 + i)) for i in range(3)]
    return Image.fromarray((np.stack(waves, -1) + rng.normal(0, 20, (height, width, 3))).clip(0, 255).astype(np.uint8))


def pixels_of(values: torch.Tensor, grid: Any, patch: int, layout: str, merge: int, temporal: int) -> torch.Tensor:
    """(1, C, H, W) of rows of patches."""
    _, h, w = grid[0].tolist()
    pattern = {
        "squares": "(h w i j) (c f p q) -> f c (h i p) (w j q)",
        "rows": "(h i w j) (c f p q) -> f c (h i p) (w j q)",
        "squares, channels last": "(h w i j) (p q c f) -> f c (h i p) (w j q)",
    }[layout]
    sizes = dict(h=h // merge, w=w // merge, i=merge, j=merge, p=patch, q=patch, f=temporal)
    return rearrange(values, pattern, **sizes)[:1]


CLASSES: list[tuple[str, dict, str]] = [
    ("ChineseCLIPImageProcessor", {}, ""),
    ("ChineseCLIPImageProcessor", {"size": {"shortest_edge": 50}, "crop_size": 40}, ""),
    ("BlipImageProcessor", {}, ""),
    ("OwlViTImageProcessor", {"size": {"height": 64, "width": 64}}, ""),
    ("Owlv2ImageProcessor", {}, ""),
    ("Owlv2ImageProcessor", {"size": {"height": 64, "width": 64}}, ""),
    ("IdeficsImageProcessor", {"image_size": 56}, ""),
    ("BridgeTowerImageProcessor", {}, ""),
    ("JanusImageProcessor", {}, ""),
    ("JanusImageProcessor", {"size": {"height": 40, "width": 40}, "image_mean": [0.5, 0.5, 0.5], "min_size": 20}, ""),
    ("DeepseekVLImageProcessor", {}, ""),
    ("AriaImageProcessor", {}, ""),
    ("AriaImageProcessor", {"max_image_size": 490}, ""),
    ("Gemma3ImageProcessor", {}, ""),
    ("Gemma3ImageProcessor", {"size": {"height": 70, "width": 70}, "do_pan_and_scan": False}, ""),
    ("HunYuanVLImageProcessor", {"size": {"shortest_edge": 1024, "longest_edge": 40000}}, "rows"),
    ("HYV4VLImageProcessor", {"size": {"shortest_edge": 1024, "longest_edge": 40000}, "resample": 1}, "rows"),
    ("GlmImageImageProcessor", {"patch_size": 16, "merge_size": 1}, "squares"),
    ("GlmImageImageProcessor", {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 900, "longest_edge": 9999}}, "squares"),
    ("Cosmos3EdgeImageProcessor", {"size": {"shortest_edge": 1024, "longest_edge": 40000}}, "squares, channels last"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "layout"), CLASSES, ids=(f"{c[0]}-{i}" for c, i in zip(CLASSES, count())))
def test_pixels_are_those_of_the_class(name: str, options: dict, layout: str) -> None:
    processor = getattr(transformers, f"{name}Pil")(**options)
    bare, written = from_hf({"image_processor_type": name} | options), from_hf(processor.to_dict())
    assert bare == written
    for shape in SHAPES:
        image = photo(*shape)
        out = processor(image, return_tensors="pt")
        expected = out if isinstance(out, torch.Tensor) else out["pixel_values"]
        if layout:
            sizes = (processor.merge_size, processor.temporal_patch_size)
            expected = pixels_of(expected, out["image_grid_thw"], processor.patch_size, layout, *sizes)
        ours = bare.each(image)[0][None]
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected.float(), rtol=0, atol=3e-6 if "Owlv2" in name else 1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "Cohere2VisionImageProcessor", "Lfm2VlImageProcessor", "Phi4MultimodalImageProcessor", "Molmo2ImageProcessor",
        "UltraVBertImageProcessor", "GraniteDoclingImageProcessor", "LlavaOnevisionImageProcessor", "VideoLlavaImageProcessor",
        "DeepseekVLHybridImageProcessor", "InstructBlipVideoImageProcessor",
    ],
)  # fmt: skip
def test_a_class_that_is_named_alone_is_read(name: str) -> None:
    spec = from_hf({"image_processor_type": name})
    assert spec(photo(61, 47)).shape[1] == 3


def test_half_an_area_is_written_for_its_class() -> None:
    spec = from_hf({"image_processor_type": "GlmImageImageProcessor", "patch_size": 16, "merge_size": 1})
    config = to_hf(spec, patch_size=16)
    assert config["image_processor_type"] == "GlmImageImageProcessor" and from_hf(config) == spec
