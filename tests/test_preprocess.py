"""Preprocessing against golden tensors and against transformers' PIL image processors."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vlm_vision.checkpoints.hf_preprocess import from_hf, to_hf
from vlm_vision.preprocess import Preprocess

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
"""Leaves the picture as it is."""


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ---------------------------------------------------------------------------------------------- golden tensors

GOLDEN_IMAGES = ("astronaut.png", "camera_gray.png", "chelsea_tall.png", "coffee.jpg", "logo_rgba.png")


@pytest.fixture(scope="session")
def golden(shared: Path) -> tuple[dict, dict[str, torch.Tensor], Path]:
    folder = shared / "golden" / "preprocess"
    return json.loads((folder / "case.json").read_text()), load_file(folder / "golden.safetensors"), folder / "images"


@pytest.mark.parametrize("image", GOLDEN_IMAGES)
@pytest.mark.parametrize("processor", ["siglip.pil", "dinov2_bit.pil", "clip.pil", "vit.pil"])
def test_pixels_equal_the_golden_tensors(golden, processor: str, image: str) -> None:
    case, tensors, images = golden
    reference = case["processors"][processor]
    expected = tensors[f"{processor}.{Path(image).stem}"]
    for config in (reference["kwargs"], reference["resolved"]):
        spec = from_hf({"image_processor_type": reference["class"], **config})
        torch.testing.assert_close(spec(images / image)[0], expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- transformers

SIZES = [(37, 53), (201, 31), (31, 200), (1, 57), (57, 1), (9, 8), (40, 40)]
REFERENCES = [
    ("BitImageProcessor", {"size": {"shortest_edge": 45}, "crop_size": {"height": 40, "width": 40}}),
    ("BitImageProcessor", {"size": {"shortest_edge": 30}, "crop_size": {"height": 41, "width": 36}, "resample": 2}),
    ("BitImageProcessor", {"do_resize": False, "crop_size": 32}),
    ("CLIPImageProcessor", {"size": 33, "crop_size": 32, "resample": 1}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "do_center_crop": False, "resample": 5}),
    ("CLIPImageProcessor", {"size": 40, "crop_size": [40, 39], "do_normalize": False, "resample": 4}),
    ("SiglipImageProcessor", {"size": {"height": 28, "width": 42}}),
    ("SiglipImageProcessor", {"size": 30, "image_mean": 0.4, "image_std": 0.3}),
    ("ViTImageProcessor", {"size": 40}),
    ("ViTImageProcessor", {"size": {"height": 80, "width": 64}, "resample": 0, "rescale_factor": 1 / 127}),
    ("DeiTImageProcessor", {"size": 50, "crop_size": 45}),
]


@pytest.mark.parametrize(("name", "options"), REFERENCES)
def test_pixels_equal_transformers(name: str, options: dict) -> None:
    import transformers

    reference = getattr(transformers, name + "Pil")(**options)
    spec = from_hf({"image_processor_type": name, **options})
    for seed, size in enumerate(SIZES):
        image = Image.fromarray(picture(*size, seed=seed))
        expected = reference(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(spec(image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ViT", "DeiT", "CLIP", "Siglip", "Bit"])
def test_missing_keys_take_the_defaults_of_the_class(name: str) -> None:
    import transformers

    reference = getattr(transformers, f"{name}ImageProcessorPil")()
    image = Image.fromarray(picture(90, 120))
    expected = reference(image, return_tensors="pt").pixel_values
    for config in (
        {"image_processor_type": f"{name}ImageProcessor"},
        {"image_processor_type": f"{name}ImageProcessorFast", "size": None, "crop_size": None, "do_pad": None},
        {"feature_extractor_type": f"{name}FeatureExtractor"},
        reference.to_dict(),
    ):
        torch.testing.assert_close(from_hf(config)(image), expected, rtol=0, atol=1e-6)


def test_a_dinov3_config_is_read_as_its_hub_file_says() -> None:
    spec = from_hf(
        {
            "crop_size": None,
            "data_format": "channels_first",
            "default_to_square": True,
            "device": None,
            "disable_grouping": None,
            "do_center_crop": None,
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "DINOv3ViTImageProcessorFast",
            "image_std": [0.229, 0.224, 0.225],
            "input_data_format": None,
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "return_tensors": None,
            "size": {"height": 224, "width": 224},
        }
    )
    assert spec == from_hf({"image_processor_type": "DINOv3ViTImageProcessor"})
    assert (spec.resize, spec.output_size, spec.resample) == ("squash", (224, 224), "bilinear")


SPECS = [
    SQUASH,
    CROPPED,
    WHOLE,
    dataclasses.replace(CROPPED, crop=None, resample="lanczos"),
    dataclasses.replace(SQUASH, crop=(30, 20), resample="hamming"),
    dataclasses.replace(WHOLE, crop=(30, 60), rescale=1 / 127.5, mean=(1, 1, 1), resample="nearest"),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor"])
def test_a_written_config_loads_in_transformers_and_gives_the_same_pixels(tmp_path: Path, spec, name: str) -> None:
    from transformers import AutoImageProcessor

    config = to_hf(spec, image_processor_type=name)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert from_hf(json.loads(json.dumps(config))) == spec
    image = Image.fromarray(picture(37, 53))
    reference = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    expected = reference(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(spec(image), expected, rtol=1e-6, atol=1e-6)


BIT = {"image_processor_type": "BitImageProcessor"}
WHOLLY_GIVEN = {**to_hf(CROPPED), "image_processor_type": "SomeImageProcessor"}


def test_an_unknown_type_with_every_key_is_read() -> None:
    assert from_hf(WHOLLY_GIVEN) == CROPPED
    assert from_hf({**WHOLLY_GIVEN, "do_reduce_labels": False, "do_pad": False}) == CROPPED
    uncropped = {key: value for key, value in WHOLLY_GIVEN.items() if key not in ("do_center_crop", "crop_size")}
    assert from_hf(uncropped) == dataclasses.replace(CROPPED, crop=None)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (BIT | {"size": {"longest_edge": 40}}, "size=.*longest_edge.*not supported"),
        (BIT | {"size": {"shortest_edge": 40, "longest_edge": 80}}, "size=.*longest_edge.*not supported"),
        (BIT | {"do_pad": True}, "do_pad=True.*not supported"),
        (BIT | {"crop_size": {"shortest_edge": 40}}, "crop_size=.*not supported"),
        (BIT | {"data_format": "channels_last"}, "data_format='channels_last'.*not supported"),
        (BIT | {"resample": 9}, "resample=9.*not supported"),
        (BIT | {"size_divisor": 32}, "size_divisor=32.*not supported"),
        ({"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 256}, "max_num_patches=256.*not supp"),
        ({"image_processor_type": "ConvNextFeatureExtractor", "size": 224}, "'ConvNextImageProcessor'.*not supported"),
        ({k: v for k, v in WHOLLY_GIVEN.items() if k != "size"}, r"lacks \['size'\].*'SomeImageProcessor'"),
        ({k: v for k, v in WHOLLY_GIVEN.items() if k != "do_center_crop"}, r"lacks \['do_center_crop'\]"),
        (WHOLLY_GIVEN | {"size": 224}, r"lacks \['default_to_square'\]"),
    ],
)
def test_a_config_that_cannot_be_reproduced_is_refused_by_name(config: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        from_hf(config)


def test_to_hf_refuses_a_type_that_could_not_be_read_back() -> None:
    with pytest.raises(ValueError, match="'ConvNextImageProcessor': expected one of"):
        to_hf(SQUASH, image_processor_type="ConvNextImageProcessor")


# ---------------------------------------------------------------------------------------------- batches


def test_pixels_are_contiguous_float32_and_do_not_depend_on_the_batch() -> None:
    images = [picture(20 + i, 50 - i, seed=i) for i in range(3)]
    pixels = CROPPED(images)
    assert pixels.shape == (3, 3, 40, 40) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert torch.equal(CROPPED(tuple(images)), pixels)
    for image, row in zip(images, pixels, strict=True):
        assert torch.equal(CROPPED(image)[0], row)


def test_one_array_may_hold_a_batch() -> None:
    images = np.stack([picture(20, 30, seed=i) for i in range(2)])
    expected = CROPPED(list(images))
    assert torch.equal(CROPPED(images), expected)
    assert torch.equal(CROPPED(torch.from_numpy(images).permute(0, 3, 1, 2)), expected)


def test_an_empty_batch_is_refused() -> None:
    for images in ([], (), np.zeros((0, 4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="no images: expected at least one"):
            SQUASH(images)


def test_images_that_come_out_in_different_sizes_are_refused() -> None:
    images = [picture(20, 30), picture(30, 20)]
    uncropped = dataclasses.replace(CROPPED, crop=None)
    with pytest.raises(ValueError, match=r"sizes \[\(45, 67\), \(67, 45\)\].*one size in a batch; set a crop or"):
        uncropped(images)
    assert uncropped(images[:1]).shape == (1, 3, 45, 67)


# ---------------------------------------------------------------------------------------------- the spec


def test_output_size_is_known_unless_it_depends_on_the_picture() -> None:
    assert SQUASH.output_size == (28, 42)
    assert CROPPED.output_size == (40, 40)
    assert WHOLE.output_size is None
    assert dataclasses.replace(CROPPED, crop=None).output_size is None


def test_at_keeps_the_kind_and_changes_the_size() -> None:
    dinov2 = dataclasses.replace(CROPPED, resize_to=(256, 256), crop=(224, 224))
    assert dinov2.at(518, 518) == dataclasses.replace(dinov2, resize_to=(592, 592), crop=(518, 518))
    assert dinov2.at(224, 224) == dinov2
    assert dinov2.at(224, 448) == dataclasses.replace(dinov2, resize_to=(512, 512), crop=(224, 448))
    assert SQUASH.at(14, 21) == dataclasses.replace(SQUASH, resize_to=(14, 21))
    both = dataclasses.replace(SQUASH, resize_to=(256, 256), crop=(224, 224))
    assert both.at(112, 448) == dataclasses.replace(both, resize_to=(128, 512), crop=(112, 448))
    assert dataclasses.replace(CROPPED, crop=None).at(30, 30).resize_to == (30, 30)
    assert dataclasses.replace(WHOLE, crop=(8, 8)).at(9, 7).output_size == (9, 7)
    for spec in (SQUASH, CROPPED):
        assert spec.at(26, 34)(picture(30, 50)).shape == (1, 3, 26, 34)


def test_at_refuses_a_size_it_cannot_promise() -> None:
    for spec in (WHOLE, dataclasses.replace(CROPPED, crop=None)):
        with pytest.raises(ValueError, match=r"without a crop cannot give every picture the size \(30, 40\)"):
            spec.at(30, 40)


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_survives_json(spec: Preprocess) -> None:
    again = Preprocess.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and again.fingerprint == spec.fingerprint and hash(again) == hash(spec)


def test_from_dict_takes_every_key_and_no_other() -> None:
    fields = SQUASH.to_dict()
    with pytest.raises(ValueError, match=r"unknown keys \['colour'\] and lacks \[\]"):
        Preprocess.from_dict(fields | {"colour": "RGB"})
    del fields["crop"]
    with pytest.raises(ValueError, match=r"unknown keys \[\] and lacks \['crop'\]"):
        Preprocess.from_dict(fields)


def test_the_fingerprint_never_changes_for_the_same_spec() -> None:
    assert CROPPED.fingerprint == "9dce0154edbaeca8"
    assert dataclasses.replace(WHOLE, mean=(0.0, 0.0, 0.0), rescale=1).fingerprint == WHOLE.fingerprint


def test_the_fingerprint_changes_with_every_field() -> None:
    changes = {
        "resize": "squash",
        "resize_to": (46, 46),
        "resample": "bilinear",
        "crop": (40, 41),
        "rescale": 1 / 256,
        "mean": (0.485, 0.406, 0.456),
        "std": (0.229, 0.224, 0.226),
    }
    assert changes.keys() == CROPPED.to_dict().keys()
    prints = {dataclasses.replace(CROPPED, **{field: value}).fingerprint for field, value in changes.items()}
    assert len(prints | {CROPPED.fingerprint}) == len(changes) + 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"resize": "shortest"},
            "resize is 'shortest': expected one of none, squash, shortest_edge; did you mean 'shortest_e",
        ),
        ({"resample": "bicubik"}, "resample is 'bicubik': .*; did you mean 'bicubic'"),
        ({"resample": 3}, "resample is 3: expected one of nearest, .*; use one of these"),
        ({"resize_to": (0, 42)}, "resize_to is .*expected 2 positive whole numbers"),
        ({"resize_to": (28.5, 42)}, "resize_to is .*expected 2 positive whole numbers"),
        ({"resize_to": 28}, "resize_to is 28: expected 2 positive whole numbers"),
        ({"resize": "none"}, r"resize_to is \(28, 42\) but resize is 'none': expected \(0, 0\)"),
        ({"resize": "shortest_edge"}, r"resize_to is \(28, 42\) but resize is 'shortest_edge': expected \(28, 28\)"),
        ({"crop": (40, -1)}, "crop is .*expected 2 positive whole numbers"),
        ({"crop": (40, 40, 3)}, "crop is .*expected 2 positive whole numbers"),
        ({"rescale": 0.0}, "rescale is .*not zero"),
        ({"rescale": float("nan")}, "rescale is .*finite"),
        ({"mean": (0.5, 0.5)}, "mean is .*expected 3 finite numbers"),
        ({"mean": None}, "mean is None: expected 3 finite numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "std is .*not zero"),
        ({"std": (0.5, float("inf"), 0.5)}, "std is .*finite"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SQUASH, **change)
