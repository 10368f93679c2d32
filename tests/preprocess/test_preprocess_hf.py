"""`preprocessor_config.json` of transformers: golden pixels, transformers itself, and both ways."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.golden import golden_case
from support.preprocessing import BUDGETED, CROPPED, FLOAT, SIZES, SPECS, SQUASH, make_image

from vlm_vision.checkpoints.hf.preprocess import DEFAULTS, from_hf
from vlm_vision.checkpoints.hf.write_preprocess import to_hf
from vlm_vision.preprocess.spec import Preprocess

# ---------------------------------------------------------------------------------------------- golden tensors

GOLDEN_IMAGES = ("astronaut.png", "camera_gray.png", "chelsea_tall.png", "coffee.jpg", "logo_rgba.png")


@pytest.fixture(scope="session")
def golden() -> tuple[dict, dict[str, torch.Tensor], Path]:
    folder = golden_case("preprocess")
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
        image = Image.fromarray(make_image(*size, seed=seed))
        expected = reference(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(spec(image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ViT", "DeiT", "CLIP", "Siglip", "Bit"])
def test_missing_keys_take_the_defaults_of_the_class(name: str) -> None:
    import transformers

    reference = getattr(transformers, f"{name}ImageProcessorPil")()
    image = Image.fromarray(make_image(90, 120))
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
        image = Image.fromarray(make_image(*size, seed=seed))
        expected = reference(image, return_tensors="pt")
        patches = as_patches(*spec.each(image), patch_size)
        assert expected.pixel_attention_mask.sum() == len(patches) <= budget
        torch.testing.assert_close(patches, expected.pixel_values[0, : len(patches)], rtol=0, atol=1e-6)


def test_naflex_sizes_equal_transformers() -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    random = np.random.default_rng(0)
    for height, width, patch_size, budget in random.integers((1, 1, 4, 1), (4000, 4000, 33, 1200), (500, 4)).tolist():
        expected = get_image_size_for_max_num_patches(height, width, patch_size, budget)
        assert SQUASH.with_budget(budget, patch_size).resized(height, width) == expected


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


def test_one_tile_of_a_tiled_processor_is_the_whole_image_squashed() -> None:
    import transformers

    reference = transformers.Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    image = Image.fromarray(make_image(64, 64))  # at its `size` already, so that the first of two resizes does nothing
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
    image = Image.fromarray(make_image(37, 53))
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
    image = Image.fromarray(make_image(37, 53))
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
        ({"fill": (1, 2, 3)}, r"with black, this preprocessing with \(1, 2, 3\)"),
        ({"crop_rounding": "half_even"}, "rounds the place of a crop down, this preprocessing to even"),
    ],
)
def test_to_hf_refuses_what_transformers_does_not_do(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be written as a preprocessor_config.json: .*{reason}; keep it by"):
        to_hf(dataclasses.replace(CROPPED, **change))


def test_to_hf_writes_a_crop_whose_rounding_makes_no_difference() -> None:
    even = dataclasses.replace(SQUASH, resize_to=(30, 31), crop=(20, 30), crop_rounding="half_even")
    assert from_hf(to_hf(even)) == dataclasses.replace(even, crop_rounding="floor")
    with pytest.raises(ValueError, match="this preprocessing to even"):
        to_hf(dataclasses.replace(even, resize_to=(30, 33)))


def test_to_hf_refuses_a_type_that_could_not_be_read_back() -> None:
    with pytest.raises(ValueError, match="'ConvNextImageProcessor': expected one of"):
        to_hf(SQUASH, image_processor_type="ConvNextImageProcessor")


def _usual(name: str) -> Preprocess | None:
    try:
        return from_hf({"image_processor_type": name})
    except ValueError:
        return None


USUAL = {name: spec for name in DEFAULTS if (spec := _usual(name)) is not None}
"""Class of transformers -> what it does where its file is silent."""


@pytest.mark.parametrize("resize", sorted({spec.resize for spec in USUAL.values()}))
def test_a_file_that_is_written_reads_back_whatever_class_it_names(resize: str) -> None:
    specs = {spec for spec in USUAL.values() if spec.resize == resize}
    specs |= {dataclasses.replace(spec, crop=(40, 44)) for spec in specs if resize in ("squash", "shortest_edge")}
    for spec in specs:
        written = []
        for name in (None, *DEFAULTS):
            try:
                config = to_hf(spec, image_processor_type=name)
            except ValueError as error:
                assert "cannot be written" in str(error) or "expected one of" in str(error)
                continue
            read = from_hf(json.loads(json.dumps(config)))
            assert read == dataclasses.replace(spec, fill=read.fill), name
            np.testing.assert_allclose(read.fill, spec.fill)
            assert name in (None, config["image_processor_type"])
            written.append(name)
        if None in written:  # where the default class does it, so does at least that class by its name
            assert len(written) > 1


WITHOUT_FILE = {
    "AriaImageProcessor", "BridgeTowerImageProcessor", "DeepseekVLHybridImageProcessor", "DeepseekVLImageProcessor",
    "JanusImageProcessor", "Lfm2VlImageProcessor", "Molmo2ImageProcessor", "Owlv2ImageProcessor", "PI0ImageProcessor",
    "Phi4MultimodalImageProcessor",
}  # fmt: skip
"""Classes whose sizes are read, but not written."""


def test_a_class_writes_its_own_file() -> None:
    failed = set()
    for name, spec in USUAL.items():
        try:
            to_hf(spec, image_processor_type=name)
        except ValueError:
            failed.add(name)
    assert failed == WITHOUT_FILE
