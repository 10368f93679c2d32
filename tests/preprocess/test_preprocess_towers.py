"""The preprocessing of towers inside vision-language models, against the image processors of transformers."""

import numpy as np
import pytest
import torch
import transformers
from einops import rearrange

from vlm_vision.checkpoints.hf.preprocess import from_hf
from vlm_vision.checkpoints.hf.write_preprocess import to_hf

SHAPES = ((37, 53), (200, 90), (90, 641))


def image(shape: tuple[int, int]) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3))
    return (0.5 * noise + np.linspace(0, 127, shape[1])[:, None]).astype(np.uint8)


def whole(processed) -> torch.Tensor:
    return processed["pixel_values"][0]


def gemma(processed) -> torch.Tensor:
    places = processed["image_position_ids"][0]
    rows, columns = int(places[:, 1].max()) + 1, int(places[:, 0].max()) + 1
    patches = processed["pixel_values"][0][: rows * columns]
    return rearrange(patches, "(h w) (p q c) -> c (h p) (w q)", h=rows, p=16, q=16)


def minicpm(processed) -> torch.Tensor:
    rows, columns = (int(n) for n in processed["target_sizes"][0])
    first = processed["pixel_values"][0, :, :, : rows * columns * 14]
    return rearrange(first, "c p (h w q) -> c (h p) (w q)", h=rows, q=14)


def rows_of_patches(processed) -> torch.Tensor:
    patches = processed["flattened_patches"][0]
    rows, columns = (int(patches[:, i].max()) for i in range(2))
    return rearrange(patches[: rows * columns, 2:], "(h w) (p q c) -> c (h p) (w q)", h=rows, p=16, q=16)


CLASSES = {
    "Gemma4ImageProcessorPil": (gemma, ({}, dict(max_soft_tokens=70), dict(pooling_kernel_size=4))),
    "SamImageProcessorPil": (
        whole,
        ({}, dict(size={"longest_edge": 120}, pad_size={"height": 120, "width": 120}), dict(do_pad=False)),
    ),
    "GotOcr2ImageProcessorPil": (whole, ({}, dict(size={"height": 40, "width": 64}))),
    "PPChart2TableImageProcessorPil": (whole, (dict(size={"height": 56, "width": 40}),)),
    "MiniCPMV4_6ImageProcessorPil": (minicpm, ({}, dict(scale_resolution=200, slice_mode=False), dict(downsample_mode="4x"))),
    "Pix2StructImageProcessorPil": (rows_of_patches, ({}, dict(max_patches=64), dict(do_normalize=False))),
    "Kosmos2_5ImageProcessorPil": (rows_of_patches, (dict(max_patches=200),)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [(name, given) for name, (_, each) in CLASSES.items() for given in each])
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_transformers(name, options, shape):
    processor = getattr(transformers, name)(**options)
    described = processor.to_dict()
    ours = from_hf(described)(image(shape))[0]
    theirs = torch.as_tensor(CLASSES[name][0](processor(image(shape), return_tensors="pt")))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-6 * max(1, theirs.abs().max())


@pytest.mark.parametrize(("name", "options"), [(name, given) for name, (_, each) in CLASSES.items() for given in each])
def test_the_file_of_it_is_written_and_read_back(name, options):
    spec = from_hf(getattr(transformers, name)(**options).to_dict())
    assert from_hf(to_hf(spec)) == spec


def test_minicpm_ocr_keeps_no_small_image_small():
    usual = {"image_processor_type": "MiniCPMOcrImageProcessor", "small_image_upsize": "always"}
    spec = from_hf(usual)
    assert (spec.resize, spec.patch_size, spec.kernel) == ("near_area", 28, "torch")
    with pytest.raises(ValueError, match="small_image_upsize='never'"):
        from_hf(usual | {"small_image_upsize": "never"})


def test_pix2struct_takes_square_patches_and_leaves_the_question_out():
    described = transformers.Pix2StructImageProcessorPil(is_vqa=True).to_dict()
    assert from_hf(described) == from_hf(described | {"is_vqa": False})
    with pytest.raises(ValueError, match="patch_size="):
        from_hf(described | {"patch_size": {"height": 16, "width": 8}})
