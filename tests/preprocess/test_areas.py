"""Image processors of Qwen's kind: our pixels are those of transformers' PIL class, and go back into its file."""

import importlib
import json

import numpy as np
import pytest
from einops import rearrange
from PIL import Image

from vlm_vision.checkpoints.hf.preprocess import from_hf
from vlm_vision.checkpoints.hf.write_preprocess import to_hf

SHAPES = [(480, 640), (37, 300), (301, 222), (9, 20), (500, 13), (29, 31), (1, 1)]
QWEN = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
SMALL = dict(size={"shortest_edge": 64 * 64, "longest_edge": 200 * 200}, patch_size=8)
CASES = [
    ("qwen2_vl", "Qwen2VL", {}),
    ("qwen2_vl", "Qwen2VL", SMALL | dict(merge_size=3, temporal_patch_size=1)),
    ("qwen2_vl", "Qwen2VL", dict(min_pixels=5000, max_pixels=30000, patch_size=16, merge_size=1)),
    ("cohere_compass", "CohereCompass", SMALL | dict(max_pixels=20000)),
    ("glm4v", "Glm4v", {}),
    ("glm4v", "Glm4v", SMALL),
    ("glm46v", "Glm46V", SMALL | dict(merge_size=3, temporal_patch_size=1)),
    ("glmga", "Glmga", SMALL | dict(patch_expand_factor=2, temporal_patch_size=4)),
    ("glm5_next", "Glm5Next", {}),
    ("glm5_next", "Glm5Next", dict(min_image_tokens=50, max_image_tokens=100, patch_size=8, temporal_patch_size=1)),
    ("glm5_next", "Glm5Next", dict(min_image_tokens=1, max_image_tokens=6, merge_size=1)),
    ("ernie4_5_vl_moe", "Ernie4_5_VLMoe", {}),
    ("ernie4_5_vl_moe", "Ernie4_5_VLMoe", SMALL | dict(merge_size=1, resample=2)),
    ("paddleocr_vl", "PaddleOCRVL", {}),
    ("paddleocr_vl", "PaddleOCRVL", SMALL | dict(max_pixels=9000, merge_size=3)),
    ("video_llama_3", "VideoLlama3", {}),
    ("video_llama_3", "VideoLlama3", SMALL | dict(merge_size=2, do_normalize=False)),
]


def picture(shape: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8))


def planes(processor, image: Image.Image) -> np.ndarray:
    """The pixels (C, H, W) of the rows of patches that a processor makes of an image."""
    out = processor(image, return_tensors="np")
    _, rows, columns = out["image_grid_thw"][0]
    merge, patch = processor.merge_size, processor.patch_size
    merge = 1 if out["pixel_values"].ndim == 4 else merge  # PaddleOCR-VL's patches lie row by row
    return rearrange(
        out["pixel_values"].reshape(len(out["pixel_values"]), 3, -1, patch, patch)[:, :, 0],
        "(h w i j) c p q -> c (h i p) (w j q)", h=rows // merge, w=columns // merge, i=merge, j=merge,
    )  # fmt: skip


@pytest.mark.parametrize(("module", "name", "changes"), CASES)
def test_pixels_are_those_of_the_class(module, name, changes, tmp_path):
    module = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    processor = getattr(module, f"{name}ImageProcessorPil")(**changes)
    processor.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "preprocessor_config.json").read_text())
    specs = [from_hf(described), from_hf({"image_processor_type": f"{name}ImageProcessor"} | changes)]
    again = to_hf(
        specs[0], image_processor_type=f"{name}ImageProcessor", patch_size=processor.patch_size,
        temporal_patch=processor.temporal_patch_size,
    )  # fmt: skip
    written = getattr(module, f"{name}ImageProcessorPil")(**again)
    for shape in SHAPES:
        image = picture(shape)
        expected = planes(processor, image)
        for pixels in (*(spec.each([image])[0].numpy() for spec in specs), planes(written, image)):
            assert pixels.shape == expected.shape
            np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)


def test_bounds_of_frames_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="size is 101 to 5000 pixels of 2 frames: expected multiples"):
        from_hf(dict(image_processor_type="Glm4vImageProcessor", size=dict(shortest_edge=101, longest_edge=5000)))
