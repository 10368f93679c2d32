"""Preprocessing read from and written to foreign formats: golden tensors, and transformers' PIL image processors."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_preprocess import BUDGETED, CROPPED, EVEN, FLOAT, LETTERBOX, SIZES, SPECS, SQUASH, WHOLE, picture

from vlm_vision.checkpoints.hf_preprocess import from_hf, to_hf
from vlm_vision.checkpoints.open_clip_preprocess import from_open_clip
from vlm_vision.checkpoints.openvla_preprocess import from_openvla
from vlm_vision.checkpoints.timm_preprocess import from_timm, to_timm
from vlm_vision.preprocess import HALF, IMAGENET, OPENAI, Preprocess

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


@pytest.mark.parametrize("image", GOLDEN_IMAGES)
def test_dinov3_resizes_floats_as_transformers_does_with_torchvision(golden, image: str) -> None:
    case, tensors, images = golden
    reference = case["processors"]["dinov3.torchvision"]
    spec = from_hf({"image_processor_type": reference["class"], **reference["kwargs"]})
    expected = tensors[f"dinov3.torchvision.{Path(image).stem}"]
    torch.testing.assert_close(spec(images / image)[0], expected, rtol=0, atol=1e-5)
    rounded = dataclasses.replace(spec, kernel="pillow")(images / image)[0]
    assert (rounded - expected).abs().max() > 1e-3


@pytest.mark.parametrize("image", GOLDEN_IMAGES)
def test_naflex_pixels_equal_the_golden_patches(golden, image: str) -> None:
    case, tensors, images = golden
    reference = case["processors"]["siglip2_naflex.pil"]
    name = f"siglip2_naflex.pil.{Path(image).stem}"
    for config in (reference["kwargs"], reference["resolved"]):
        spec = from_hf({"image_processor_type": reference["class"], **config})
        [pixels] = spec.each(images / image)
        patches = as_patches(pixels, spec.patch_size)
        grid = tuple(side // spec.patch_size for side in pixels.shape[1:])
        assert grid == tuple(tensors[f"{name}.spatial_shapes"].tolist())
        assert len(patches) == tensors[f"{name}.pixel_attention_mask"].sum() <= spec.max_patches
        torch.testing.assert_close(patches, tensors[name][: len(patches)], rtol=0, atol=1e-5)


def as_patches(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(3, H, W) -> (N, patch_size * patch_size * 3), each patch row by row with its channels last."""
    patches = pixels.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)
    return patches.permute(1, 2, 3, 4, 0).reshape(-1, 3 * patch_size**2)


# ---------------------------------------------------------------------------------------------- transformers

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


@pytest.mark.parametrize(("patch_size", "budget"), [(16, 256), (8, 7), (14, 1)])
def test_naflex_pixels_equal_transformers(patch_size: int, budget: int) -> None:
    import transformers

    reference = transformers.Siglip2ImageProcessorPil(patch_size=patch_size, max_num_patches=budget)
    spec = from_hf(reference.to_dict())
    for seed, size in enumerate(SIZES):
        image = Image.fromarray(picture(*size, seed=seed))
        expected = reference(image, return_tensors="pt")
        patches = as_patches(*spec.each(image), patch_size)
        assert expected.pixel_attention_mask.sum() == len(patches) <= budget
        torch.testing.assert_close(patches, expected.pixel_values[0, : len(patches)], rtol=0, atol=1e-6)


def test_naflex_sizes_equal_transformers() -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    random = np.random.default_rng(0)
    for height, width, patch_size, budget in random.integers((1, 1, 4, 1), (4000, 4000, 33, 1200), (500, 4)).tolist():
        expected = get_image_size_for_max_num_patches(height, width, patch_size, budget)
        assert SQUASH.with_budget(budget, patch_size)._size(height, width) == expected


HUB_CONFIGS = [
    # google/siglip2-base-patch16-naflex, google/paligemma-3b-pt-224, HuggingFaceTB/SmolVLM2, facebook/vit-mae-base
    (
        {"image_processor_type": "Siglip2ImageProcessor", "resample": 2, "do_resize": True, "image_mean": [0.5] * 3},
        {
            "resize": "max_patches",
            "resample": "bilinear",
            "patch_size": 16,
            "max_patches": 256,
            "mean": (0.5, 0.5, 0.5),
        },
    ),
    (
        {
            "image_processor_type": "SiglipImageProcessor",
            "image_seq_length": 256,
            "resample": 3,
            "size": {"height": 224, "width": 224},
        },
        {"resize": "squash", "resize_to": (224, 224), "resample": "bicubic", "std": (0.5, 0.5, 0.5)},
    ),
    (
        {
            "image_processor_type": "SmolVLMImageProcessor",
            "do_image_splitting": True,
            "do_pad": True,
            "max_image_size": {"longest_edge": 512},
            "size": {"longest_edge": 2048},
            "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
        },
        {"resize": "squash", "resize_to": (512, 512), "resample": "lanczos", "mean": (0.5, 0.5, 0.5)},
    ),
    (
        {"feature_extractor_type": "ViTFeatureExtractor", "image_mean": [0.485, 0.456, 0.406], "size": 224},
        {"resize": "squash", "resize_to": (224, 224), "resample": "bilinear", "mean": (0.485, 0.456, 0.406)},
    ),
]


@pytest.mark.parametrize(("config", "fields"), HUB_CONFIGS)
def test_configs_of_the_hub_are_read(config: dict, fields: dict) -> None:
    spec = from_hf(config)
    assert {name: getattr(spec, name) for name in fields} == fields
    assert spec.crop is None and spec.kernel == "pillow"


def test_one_tile_of_a_tiled_processor_is_the_whole_picture_squashed() -> None:
    import transformers

    reference = transformers.Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    image = Image.fromarray(picture(64, 64))  # at its `size` already, so that the first of two resizes does nothing
    expected = reference([[image]], return_tensors="pt").pixel_values[0, 0]
    torch.testing.assert_close(from_hf(reference.to_dict())(image)[0], expected, rtol=0, atol=1e-6)


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
        (BIT | {"max_num_patches": 256}, "max_num_patches=256.*not supported"),
        ({"image_processor_type": "SmolVLMImageProcessor", "max_image_size": 512}, "max_image_size=512.*not supported"),
        ({"image_processor_type": "DINOv3ViTImageProcessor", "resample": 1}, "kernel 'float' has no filter 'lanczos'"),
        ({"image_processor_type": "ConvNextFeatureExtractor", "size": 224}, "'ConvNextImageProcessor'.*not supported"),
        ({k: v for k, v in WHOLLY_GIVEN.items() if k != "size"}, r"lacks \['size'\].*'SomeImageProcessor'"),
        ({k: v for k, v in WHOLLY_GIVEN.items() if k != "do_center_crop"}, r"lacks \['do_center_crop'\]"),
        (WHOLLY_GIVEN | {"size": 224}, r"lacks \['default_to_square'\]"),
    ],
)
def test_a_config_that_cannot_be_reproduced_is_refused_by_name(config: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        from_hf(config)


@pytest.mark.parametrize(
    ("spec", "name"),
    [(BUDGETED, "Siglip2ImageProcessor"), (FLOAT, "DINOv3ViTImageProcessor")],
    ids=lambda value: str(value)[:8],
)
def test_what_one_class_alone_does_is_written_under_its_name(tmp_path: Path, spec: Preprocess, name: str) -> None:
    config = to_hf(spec)
    assert config["image_processor_type"] == name
    assert from_hf(json.loads(json.dumps(config))) == spec
    with pytest.raises(ValueError, match=f"is 'CLIPImageProcessor': expected one of {name} for this"):
        to_hf(spec, image_processor_type="CLIPImageProcessor")
    with pytest.raises(ValueError, match=f"is '{name}': expected one of ViTImageProcessor, .* for this"):
        to_hf(SQUASH, image_processor_type=name)


def test_a_written_naflex_config_loads_in_transformers_and_gives_the_same_patches(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(to_hf(BUDGETED)))
    reference = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = Image.fromarray(picture(37, 53))
    patches = as_patches(*BUDGETED.each(image), BUDGETED.patch_size)
    expected = reference(image, return_tensors="pt").pixel_values[0, : len(patches)]
    torch.testing.assert_close(patches, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"resize": "letterbox", "resize_to": (45, 45)}, "has no resize 'letterbox'"),
        ({"resize": "cover"}, "has no resize 'cover'"),
        ({"resize": "fit"}, "has no resize 'fit'"),
        ({"kernel": "point", "resample": "bilinear"}, "no kernel 'point', its resizes are antialiased"),
        ({"fill": (1, 2, 3)}, r"with black, this one with \(1, 2, 3\)"),
        ({"crop_rounding": "half_even"}, "rounds the place of a crop down, this one to even"),
    ],
)
def test_to_hf_refuses_what_transformers_does_not_do(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be written as a preprocessor_config.json: .*{reason}; keep it by"):
        to_hf(dataclasses.replace(CROPPED, **change))


def test_to_hf_writes_a_crop_whose_rounding_makes_no_difference() -> None:
    even = dataclasses.replace(SQUASH, resize_to=(30, 31), crop=(20, 30), crop_rounding="half_even")
    assert from_hf(to_hf(even)) == dataclasses.replace(even, crop_rounding="floor")
    with pytest.raises(ValueError, match="this one to even"):
        to_hf(dataclasses.replace(even, resize_to=(30, 33)))


def test_to_hf_refuses_a_type_that_could_not_be_read_back() -> None:
    with pytest.raises(ValueError, match="'ConvNextImageProcessor': expected one of"):
        to_hf(SQUASH, image_processor_type="ConvNextImageProcessor")


# ---------------------------------------------------------------------------------------------- timm

TIMM = ("dinov2", "siglip", "siglip2", "augreg", "clip", "dinov3", "deit3")


@pytest.mark.parametrize("image", GOLDEN_IMAGES)
@pytest.mark.parametrize("model", TIMM)
def test_pixels_equal_timms_golden_tensors(golden, model: str, image: str) -> None:
    case, tensors, images = golden
    spec = from_timm(case["processors"][f"timm_{model}"]["data_config"])
    expected = tensors[f"timm_{model}.{Path(image).stem}"]
    torch.testing.assert_close(spec(images / image)[0], expected, rtol=0, atol=1e-5)
    assert from_timm(json.loads(json.dumps(to_timm(spec)))) == spec


def test_every_golden_tensor_is_compared(golden) -> None:
    case, tensors, _ = golden
    compared = {"siglip.pil", "dinov2_bit.pil", "clip.pil", "vit.pil", "siglip2_naflex.pil", "dinov3.torchvision"}
    compared |= {f"timm_{model}" for model in TIMM}
    eight_bit_torchvision = {
        f"{name}.torchvision" for name in ("siglip", "dinov2_bit", "clip", "vit", "siglip2_naflex")
    }
    assert compared | eight_bit_torchvision == case["processors"].keys()
    for key in tensors:
        assert any(key.startswith(name + ".") for name in compared | eight_bit_torchvision), key


TIMM_CASES = [
    # crop_pct, crop_mode, input_size -> resize, resize_to, crop
    (None, None, [3, 224, 224], "shortest_edge", (256, 256), (224, 224)),
    (1.0, "center", [3, 518, 518], "shortest_edge", (518, 518), (518, 518)),
    (0.9, "center", [3, 40, 48], "cover", (44, 53), (40, 48)),
    (0.95, "center", [3, 33, 20], "cover", (34, 21), (33, 20)),
    (1.0, "squash", [3, 384, 256], "squash", (384, 256), None),
    (0.9, "squash", [3, 224, 224], "squash", (248, 248), (224, 224)),
    (1.0, "border", [3, 288, 256], "fit", (288, 256), (288, 256)),
    (0.95, "border", [3, 288, 288], "fit", (303, 303), (288, 288)),
]


@pytest.mark.parametrize(("crop_pct", "crop_mode", "input_size", "resize", "resize_to", "crop"), TIMM_CASES)
def test_each_crop_mode_of_timm_is_read_and_written(crop_pct, crop_mode, input_size, resize, resize_to, crop) -> None:
    given = {"input_size": input_size, "crop_pct": crop_pct, "crop_mode": crop_mode, "tag": "x", "num_classes": 0}
    spec = from_timm(given | {"mean": [0.5, 0.4, 0.3]})
    assert (spec.resize, spec.resize_to, spec.crop) == (resize, resize_to, crop)
    assert (spec.resample, spec.std) == ("bicubic", IMAGENET[1])
    assert spec.fill == ((128, 102, 76) if crop_mode == "border" else (0, 0, 0))
    assert spec.crop_rounding == ("half_even" if crop else "floor")
    written = json.loads(json.dumps(to_timm(spec)))
    assert written["input_size"] == input_size and from_timm(written) == spec


def test_every_size_of_resize_and_crop_is_written_for_timm() -> None:
    for edge in range(20, 60):
        for crop in range(edge - 15, edge + 3):
            spec = dataclasses.replace(EVEN, resize_to=(edge, edge), crop=(crop, crop))
            assert from_timm(to_timm(spec)) == spec


def test_a_naflex_model_of_timm_takes_its_budget_from_the_caller() -> None:
    config = {
        "input_size": (3, 384, 384),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    spec = from_timm(config, patch_size=16, max_patches=256)
    assert spec == SQUASH.with_budget(256, 16)
    assert from_timm(config, patch_size=16).max_patches == 576
    assert to_timm(spec)["input_size"] == [3, 256, 256]
    assert from_timm(to_timm(spec), patch_size=16, max_patches=256) == spec


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"input_size": [1, 28, 28]}, r"input_size .* is \[1, 28, 28\]: expected \[3, height, width\]; only RGB"),
        ({"input_size": 224}, "input_size .* is 224: expected"),
        ({"crop_pct": -1}, "crop_pct .* is -1: expected a positive number"),
        ({"crop_mode": "centre"}, "crop_mode .* is 'centre': expected 'center', 'squash' or 'border'"),
        ({"interpolation": "random"}, "resample is 'random': expected one of"),
    ],
)
def test_a_timm_config_that_makes_no_sense_is_refused(config: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_timm(config)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (CROPPED, "rounds the place of a crop to even, this one down"),
        (WHOLE, "has no resize 'none'"),
        (LETTERBOX, "has no resize 'letterbox'"),
        (FLOAT, "with Pillow, this with kernel 'float'"),
        (dataclasses.replace(EVEN, rescale=1 / 127.5), "rescales by 1/255, this by"),
        (dataclasses.replace(CROPPED, crop=None), "crops to one size, this has no crop"),
        (dataclasses.replace(EVEN, resize="squash", resize_to=(80, 45)), r"by one ratio .* to \(80, 45\), crops to"),
        (dataclasses.replace(EVEN, resize="fit"), r"fills with the mean; this .* fills with \(0, 0, 0\)"),
    ],
)
def test_to_timm_refuses_what_timm_does_not_do(spec: Preprocess, reason: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be written as a timm pretrained_cfg: .*{reason}.*; keep it by"):
        to_timm(spec)


# ---------------------------------------------------------------------------------------------- OpenVLA


@pytest.fixture(scope="session")
def openvla(shared: Path) -> tuple[dict, dict[str, torch.Tensor], Path]:
    folder = shared / "golden" / "preprocess_openvla"
    return json.loads((folder / "case.json").read_text()), load_file(folder / "golden.safetensors"), folder / "images"


OPENVLA = ("fused_resize_naive", "fused_letterbox", "siglip_letterbox", "dino_letterbox", "siglip_resize_crop")


@pytest.mark.parametrize("image", GOLDEN_IMAGES)
@pytest.mark.parametrize("processor", OPENVLA)
def test_pixels_equal_openvlas_golden_tensors(openvla, processor: str, image: str) -> None:
    case, tensors, images = openvla
    assert case["processors"].keys() == set(OPENVLA)
    towers = from_openvla({}, case["processors"][processor]["kwargs"])
    pixels = torch.cat([tower(images / image)[0] for tower in towers])
    torch.testing.assert_close(pixels, tensors[f"openvla_{processor}.{Path(image).stem}"], rtol=0, atol=1e-5)


FUSED = {
    "use_fused_vision_backbone": True,
    "image_resize_strategy": "resize-naive",
    "input_sizes": [[3, 224, 224], [3, 224, 224]],
    "interpolations": ["bicubic", "bicubic"],
    "means": [IMAGENET[0], HALF[0]],
    "stds": [IMAGENET[1], HALF[1]],
}


def stored(strategy: str) -> dict:
    """The keys that the reference adds when it saves `FUSED` under that strategy."""
    letterbox = strategy == "letterbox"
    size = [224, 224] if strategy == "resize-naive" else 224
    return {
        "tvf_do_letterbox": letterbox,
        "tvf_letterbox_fill": [127, 127, 127] if letterbox else None,
        "tvf_resize_params": [{"antialias": True, "interpolation": 3, "max_size": None, "size": size}] * 2,
        "tvf_crop_params": [{"output_size": [224, 224]}] * 2,
        "tvf_normalize_params": [{"inplace": False, "mean": m, "std": s} for m, s in (IMAGENET, HALF)],
    }


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
def test_three_ways_to_say_openvlas_preprocessing_agree(strategy: str) -> None:
    config = {
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "image_sizes": [224, 224],
        "image_resize_strategy": strategy,
        "use_fused_vision_backbone": True,
    }
    towers = from_openvla(config)
    assert [(tower.mean, tower.std) for tower in towers] == [IMAGENET, HALF]
    assert {tower.fill for tower in towers} == {(127, 127, 127) if strategy == "letterbox" else (0, 0, 0)}
    assert {tower.output_size for tower in towers} == {(224, 224)}
    assert {tower.crop_rounding for tower in towers} == {"half_even" if strategy == "resize-crop" else "floor"}
    preprocessor = FUSED | {"image_resize_strategy": strategy}
    assert from_openvla({}, preprocessor) == towers
    assert from_openvla({}, preprocessor | stored(strategy)) == towers
    # what is stored stands above the rest
    assert from_openvla({}, preprocessor | {"image_resize_strategy": "?", "means": []} | stored(strategy)) == towers


@pytest.mark.parametrize(
    ("name", "statistics"),
    [
        ("vit_large_patch14_clip_336.openai", OPENAI),
        ("vit_so400m_patch14_siglip_384", HALF),
        ("vit_large_patch16_224.augreg_in21k_ft_in1k", HALF),
    ],
)
def test_a_tower_without_preprocessor_config_is_normalised_by_its_name(name: str, statistics) -> None:
    [tower] = from_openvla({"timm_model_ids": [name], "image_sizes": [336]})
    assert (tower.mean, tower.std, tower.resize, tower.resize_to) == (*statistics, "letterbox", (336, 336))


@pytest.mark.parametrize(
    ("config", "preprocessor", "sentence"),
    [
        ({"image_sizes": [224]}, None, r"config.json lacks \['timm_model_ids'\] and there is no preprocessor_config"),
        ({"timm_model_ids": ["resnet50"], "image_sizes": [224]}, None, "no mean and std is known for tower 'resnet50'"),
        (
            {},
            FUSED | {"image_resize_strategy": "crop"},
            "image_resize_strategy is 'crop': expected one of resize-naive",
        ),
        ({}, FUSED | {"means": [HALF[0]]}, r"have lengths \[2, 2, 1, 2\]: expected one entry for each tower"),
        (
            {},
            FUSED | {"input_sizes": [[3, 224, 196]] * 2},
            r"an input size is \[3, 224, 196\]: expected \[3, edge, edge\]",
        ),
        (
            {},
            FUSED | stored("resize-naive") | {"tvf_crop_params": [{"output_size": [200, 200]}] * 2},
            r"crop to \[\[200, 200\], \[200, 200\]\]: expected equal sizes",
        ),
        ({}, FUSED | stored("resize-naive") | {"tvf_do_letterbox": True}, "one edge rather than two where"),
    ],
)
def test_an_openvla_config_that_makes_no_sense_is_refused(config: dict, preprocessor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_openvla(config, preprocessor)


# ---------------------------------------------------------------------------------------------- open_clip


def test_open_clip_by_default_is_clip_with_torchvisions_crop() -> None:
    clip = from_hf({"image_processor_type": "CLIPImageProcessor"})
    spec = from_open_clip({}, 224)
    assert spec == dataclasses.replace(clip, crop_rounding="half_even")
    assert from_open_clip({"mean": list(OPENAI[0]), "std": None, "size": 384, "mode": "RGB"}, (224, 224)) == spec


@pytest.mark.parametrize(
    ("config", "size", "fields"),
    [
        ({"resize_mode": "squash", "mean": 0.5, "std": 0.5}, (28, 42), vars(SQUASH)),
        ({"interpolation": "bilinear"}, 40, {"resize": "shortest_edge", "resample": "bilinear", "crop": (40, 40)}),
        ({"interpolation": "random"}, 40, {"resample": "bicubic"}),
        ({"interpolation": "bilinear"}, (30, 40), {"resize": "cover", "resample": "bicubic", "crop": (30, 40)}),
        ({"resize_mode": "longest", "fill_color": 9}, (30, 40), {"resize": "fit", "fill": (9, 9, 9), "crop": (30, 40)}),
    ],
)
def test_each_resize_mode_of_open_clip_is_read(config: dict, size, fields: dict) -> None:
    spec = from_open_clip(config, size)
    assert {name: getattr(spec, name) for name in fields} == fields
    assert spec(picture(33, 21)).shape == (1, 3, *((size, size) if isinstance(size, int) else size))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"resize_mode": "crop"},
            "resize_mode in the preprocess_cfg is 'crop': expected shortest or longest or squash",
        ),
        (
            {"interpolation": "lanczos"},
            "interpolation in the preprocess_cfg is 'lanczos': expected bilinear or bicubic",
        ),
        ({"mode": "L"}, "mode in the preprocess_cfg is 'L': expected RGB"),
    ],
)
def test_an_open_clip_config_that_makes_no_sense_is_refused(config: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_open_clip(config, 224)
