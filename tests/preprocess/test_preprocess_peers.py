"""The preprocessing of timm, OpenVLA and open_clip: golden pixels, and both ways for timm."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.golden import golden_case
from support.preprocessing import CROPPED, EVEN, FLOAT, LETTERBOX, SQUASH, WHOLE, make_image

from vlm_vision.checkpoints.hf.preprocess import from_hf
from vlm_vision.checkpoints.open_clip.preprocess import from_open_clip
from vlm_vision.checkpoints.openvla.preprocess import from_openvla
from vlm_vision.checkpoints.timm.preprocess import from_timm, to_timm
from vlm_vision.preprocess.spec import HALF, IMAGENET, OPENAI, Preprocess

# ---------------------------------------------------------------------------------------------- golden tensors

GOLDEN_IMAGES = ("astronaut.png", "camera_gray.png", "chelsea_tall.png", "coffee.jpg", "logo_rgba.png")


@pytest.fixture(scope="session")
def golden() -> tuple[dict, dict[str, torch.Tensor], Path]:
    folder = golden_case("preprocess")
    return json.loads((folder / "case.json").read_text()), load_file(folder / "golden.safetensors"), folder / "images"


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
        (CROPPED, "rounds the place of a crop to even, this preprocessing down"),
        (WHOLE, "has no resize 'none'"),
        (LETTERBOX, "has no resize 'letterbox'"),
        (FLOAT, "with Pillow, this preprocessing with kernel 'float'"),
        (dataclasses.replace(EVEN, rescale=1 / 127.5), "rescales by 1/255, this preprocessing by"),
        (dataclasses.replace(CROPPED, crop=None), "crops to one size, this preprocessing has no crop"),
        (dataclasses.replace(EVEN, resize="squash", resize_to=(80, 45)), r"by one ratio .* to \(80, 45\), crops to"),
        (dataclasses.replace(EVEN, resize="fit"), r"fills with the mean; this .* fills with \(0, 0, 0\)"),
    ],
)
def test_to_timm_refuses_what_timm_does_not_do(spec: Preprocess, reason: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be written as a timm pretrained_cfg: .*{reason}.*; keep it by"):
        to_timm(spec)


# ---------------------------------------------------------------------------------------------- OpenVLA


@pytest.fixture(scope="session")
def openvla() -> tuple[dict, dict[str, torch.Tensor], Path]:
    folder = golden_case("preprocess_openvla")
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
def test_a_tower_without_preprocessor_config_is_normalized_by_its_name(name: str, statistics) -> None:
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
    assert spec(make_image(33, 21)).shape == (1, 3, *((size, size) if isinstance(size, int) else size))


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
