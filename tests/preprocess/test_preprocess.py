"""The preprocessing itself: batches, resizes, and the spec as data. Foreign formats are in test_preprocess_formats.py."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from support.preprocessing import BUDGETED, CROPPED, EVEN, FLOAT, LETTERBOX, SIZES, SPECS, SQUASH, WHOLE, make_image

from vlm_vision.preprocess.spec import Preprocess
from vlm_vision.preprocess.steps import ImageStep

# ---------------------------------------------------------------------------------------------- batches


def test_pixels_are_contiguous_float32_and_do_not_depend_on_the_batch() -> None:
    images = [make_image(20 + i, 50 - i, seed=i) for i in range(3)]
    pixels = CROPPED(images)
    assert pixels.shape == (3, 3, 40, 40) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert torch.equal(CROPPED(tuple(images)), pixels)
    for image, row in zip(images, pixels, strict=True):
        assert torch.equal(CROPPED(image)[0], row)


def test_one_array_may_hold_a_batch() -> None:
    images = np.stack([make_image(20, 30, seed=i) for i in range(2)])
    expected = CROPPED(list(images))
    assert torch.equal(CROPPED(images), expected)
    assert torch.equal(CROPPED(torch.from_numpy(images).permute(0, 3, 1, 2)), expected)


def test_an_empty_batch_is_refused() -> None:
    for images in ([], (), np.zeros((0, 4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="no images: expected at least one"):
            SQUASH(images)


def test_images_that_come_out_in_different_sizes_are_refused() -> None:
    images = [make_image(20, 30), make_image(30, 20)]
    uncropped = dataclasses.replace(CROPPED, crop=None)
    with pytest.raises(
        ValueError,
        match=r"sizes \[\(45, 67\), \(67, 45\)\].*one size in a batch; set a crop or .*"
        r"keep the sizes by encoder\.packed\(preprocess\.each\(images\)\)$",
    ):
        uncropped(images)
    assert uncropped(images[:1]).shape == (1, 3, 45, 67)


def test_each_gives_every_image_its_own_size_and_the_pixels_it_has_alone() -> None:
    images = [make_image(20, 30), make_image(30, 20, seed=1), make_image(50, 50, seed=2)]
    for spec in (dataclasses.replace(CROPPED, crop=None), BUDGETED, WHOLE, FLOAT, CROPPED):
        pixels = spec.each(images)
        assert len(pixels) == 3
        for image, planes in zip(images, pixels, strict=True):
            assert planes.dtype == torch.float32 and planes.is_contiguous()
            assert torch.equal(planes, spec(image)[0])
    assert [planes.shape for planes in WHOLE.each(images)] == [(3, 20, 30), (3, 30, 20), (3, 50, 50)]
    with pytest.raises(ValueError, match="no images: expected at least one"):
        WHOLE.each([])


# ---------------------------------------------------------------------------------------------- resizes

RAMP = np.tile(np.arange(0, 240, 8, dtype=np.uint8)[:, None, None], (1, 20, 3))
"""(30, 20): each row one gray."""


def test_a_budget_is_kept_and_nearly_used_and_so_is_the_aspect_ratio() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        height, width = random.integers(20, 400, 2)
        patch_size, budget = int(random.integers(4, 20)), int(random.integers(16, 300))
        [pixels] = CROPPED.with_budget(budget, patch_size).each(np.zeros((height, width, 3), np.uint8))
        rows, columns = (side / patch_size for side in pixels.shape[1:])
        assert rows.is_integer() and columns.is_integer() and rows * columns <= budget
        # each side is rounded up by less than a patch from one common scale
        assert (rows - 1) / height < columns / width and (columns - 1) / width < rows / height
        # a patch more along both sides would not fit
        assert (rows + 1) * (columns + 1) > budget


def test_with_budget_keeps_the_whole_image_filter_and_normalization() -> None:
    spec = dataclasses.replace(CROPPED, crop_rounding="half_even", fill=(1, 2, 3), kernel="float").with_budget(12, 14)
    assert spec == dataclasses.replace(BUDGETED, kernel="float")
    assert (spec.resize, spec.crop, spec.output_size) == ("max_patches", None, None)
    assert (spec.resample, spec.mean, spec.std) == (CROPPED.resample, CROPPED.mean, CROPPED.std)
    assert spec(RAMP).shape == (1, 3, 56, 42)
    for wrong in (0, -1, 2.5):
        with pytest.raises(
            ValueError, match=f"max_patches is {wrong} but resize is 'max_patches': expected a positive"
        ):
            CROPPED.with_budget(wrong, 14)


def test_letterbox_keeps_all_of_the_image_between_bars_of_the_fill_color() -> None:
    spec = dataclasses.replace(WHOLE, resize="letterbox", resize_to=(60, 60), fill=(9, 99, 199), resample="nearest")
    assert spec.output_size == (60, 60) and spec.at(30, 30).resize_to == (30, 30)
    pixels = spec(RAMP)[0]  # 5 columns left and right make it 30 x 30, then each pixel is doubled
    assert pixels.shape == (3, 60, 60)
    bar = torch.tensor([9.0, 99.0, 199.0])[:, None, None].expand(3, 60, 10)
    assert torch.equal(pixels[:, :, :10], bar) and torch.equal(pixels[:, :, 50:], bar)
    expected = torch.from_numpy(RAMP).permute(2, 0, 1).float().repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(pixels[:, :, 10:50], expected)
    for height, width in SIZES:  # an odd difference leaves one pixel over
        assert spec(make_image(height, width)).shape == (1, 3, 60, 60)


def test_cover_and_fit_keep_the_aspect_ratio_outside_and_inside_of_a_size() -> None:
    cover = dataclasses.replace(WHOLE, resize="cover", resize_to=(30, 40))
    fit = dataclasses.replace(cover, resize="fit")
    assert cover(RAMP).shape == (1, 3, 60, 40) and fit(RAMP).shape == (1, 3, 30, 20)
    assert fit(make_image(1, 500)).shape == (1, 3, 1, 40)
    assert cover.output_size is fit.output_size is None


@pytest.mark.parametrize(
    ("size", "crop", "floor", "half_even"),
    [
        (45, 40, 2, 2),
        (47, 40, 3, 4),
        (44, 40, 2, 2),
        (40, 40, 0, 0),
        (40, 45, -3, -2),
        (40, 44, -2, -2),
        (7, 10, -2, -1),
    ],
)
def test_a_crop_is_placed_as_its_rounding_says(size: int, crop: int, floor: int, half_even: int) -> None:
    column = np.arange(1, size + 1, dtype=np.uint8)[:, None, None].repeat(3, 2)
    for rounding, offset in (("floor", floor), ("half_even", half_even)):
        spec = dataclasses.replace(WHOLE, crop=(crop, 1), fill=(255, 255, 255), crop_rounding=rounding)
        expected = [row + 1 if 0 <= row < size else 255 for row in range(offset, offset + crop)]
        assert spec(column)[0, 0, :, 0].tolist() == expected


def test_the_float_kernel_is_torchs_antialiased_resize_of_floats() -> None:
    image = make_image(53, 37)
    for resample in ("bilinear", "bicubic"):
        spec = dataclasses.replace(FLOAT, resample=resample, crop=(20, 30))
        planes = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        resized = torch.nn.functional.interpolate(planes, (28, 42), mode=resample, antialias=True)
        torch.testing.assert_close(spec(image), (resized[:, :, 4:24, 6:36] - 0.5) / 0.5, rtol=0, atol=1e-5)


def test_the_point_kernel_reads_two_by_two_pixels_and_truncates() -> None:
    spec = dataclasses.replace(WHOLE, resize="squash", resize_to=(2, 1), resample="bilinear", kernel="point")
    column = np.array([10, 90, 21, 32, 200, 7], np.uint8)[:, None, None].repeat(3, 2)
    assert spec(column)[0, 0, :, 0].tolist() == [90, 200]  # centers 1 and 4: an antialiased filter sees all
    assert dataclasses.replace(spec, resize_to=(3, 1))(column)[0, 0, :, 0].tolist() == [50, 26, 103]  # 26.5, 103.5
    assert dataclasses.replace(spec, resize_to=(12, 1))(column)[0, 0, :3, 0].tolist() == [10, 30, 70]


def test_the_point_kernel_is_within_one_step_of_torch_and_keeps_flat_areas() -> None:
    image = make_image(53, 37)
    spec = dataclasses.replace(WHOLE, resize="squash", resize_to=(31, 45), resample="bilinear", kernel="point")
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(planes, (31, 45), mode="bilinear", align_corners=False).floor()
    difference = (spec(image) - expected).abs()
    assert difference.max() <= 1 and difference.mean() < 0.01
    for gray in range(256):
        assert (spec(np.full((13, 17, 3), gray, np.uint8)) == gray).all()


# ---------------------------------------------------------------------------------------------- the spec


def test_output_size_is_known_unless_it_depends_on_the_image() -> None:
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
        assert spec.at(26, 34)(make_image(30, 50)).shape == (1, 3, 26, 34)


def test_at_refuses_a_size_it_cannot_promise() -> None:
    for spec in (WHOLE, dataclasses.replace(CROPPED, crop=None), BUDGETED, LETTERBOX):
        with pytest.raises(ValueError, match=r"without a crop cannot give every image the size \(30, 40\)"):
            spec.at(30, 40)


@pytest.mark.parametrize("spec", [*SPECS, BUDGETED, FLOAT, LETTERBOX, EVEN])
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
    assert SQUASH.fingerprint == "2eecd64920147387"
    assert WHOLE.fingerprint == "f7198e4dc4067a81"
    for spec in SPECS:  # fields that came later are not written while they keep their defaults
        assert list(spec.to_dict()) == ["resize", "resize_to", "resample", "crop", "rescale", "mean", "std"]
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
    later = {"crop_rounding": "half_even", "fill": (0, 0, 1), "kernel": "float"}
    assert changes.keys() == CROPPED.to_dict().keys()
    changes |= later
    prints = {dataclasses.replace(CROPPED, **{field: value}).fingerprint for field, value in changes.items()}
    prints |= {dataclasses.replace(BUDGETED, **{field: 7}).fingerprint for field in ("patch_size", "max_patches")}
    assert len(prints | {CROPPED.fingerprint, BUDGETED.fingerprint}) == len(changes) + 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"resize": "shortest"},
            "resize is 'shortest': expected one of none, squash, shortest_edge, .*fit, .*; did you mean 'shortest_e",
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
        ({"resize": "max_patches"}, r"resize_to is \(28, 42\) but resize is 'max_patches': expected \(0, 0\)"),
        ({"resize": "letterbox"}, r"resize_to is \(28, 42\) but resize is 'letterbox': expected \(28, 28\)"),
        ({"resize": "max_patches", "resize_to": (0, 0)}, "patch_size is 0 but .*: expected a positive whole number"),
        ({"patch_size": 14}, "patch_size is 14 but resize is 'squash': expected 0"),
        ({"max_patches": 256}, "max_patches is 256 but resize is 'squash': expected 0"),
        (
            {"resize": "max_patches", "resize_to": (0, 0), "patch_size": 8, "max_patches": 9, "crop": (8, 8)},
            r"crop is \(8, 8\) but resize is 'max_patches', which keeps the whole image: expected crop=None",
        ),
        ({"kernel": "pilow"}, "kernel is 'pilow': expected one of pillow, float, point, .*; did you mean 'pillow'"),
        (
            {"kernel": "float", "resample": "lanczos"},
            "kernel 'float' has no filter 'lanczos': expected bilinear or bic",
        ),
        ({"kernel": "point"}, "kernel 'point' has no filter 'bicubic': expected bilinear$"),
        ({"kernel": "float", "resize": "none", "resize_to": (0, 0)}, "kernel is 'float' but resize is 'none'"),
        (
            {"crop_rounding": "even"},
            "crop_rounding is 'even': expected one of floor, half_even, truncated; did you mean 'half_ev",
        ),
        ({"crop_rounding": "half_even"}, "crop_rounding is 'half_even' but crop is None: expected 'floor', or a crop"),
        ({"fill": (0, 0, 256)}, r"fill is \(0, 0, 256\): expected 3 numbers in 0..255"),
        (
            {"fill": (0.5, 0.5, 0.5), "resize": "letterbox", "resize_to": (28, 28)},
            "fill is .*expected 3 whole numbers in 0..255",
        ),
        ({"crop_place": "top_left"}, "crop_place is 'top_left' but crop is None .*expected 'centre', or a crop"),
        ({"camera": "openvla"}, "camera is 'openvla': expected a CameraPath or None; see with_evaluation"),
        ({"fill": (1, 1, 1)}, r"fill is \(1, 1, 1\) but nothing is added to the image: expected \(0, 0, 0\), a crop"),
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


FILLED = dataclasses.replace(SQUASH, resize_to=(30, 50), multiple=32)


def test_sides_are_filled_up_to_multiples_in_the_output_size_too() -> None:
    assert FILLED(make_image(40, 40)).shape[-2:] == (32, 64) == FILLED.output_size
    assert FILLED.at(64, 96).output_size == (64, 96)
    with pytest.raises(ValueError, match=r"filled up to multiples of 32 pixels, got \(40, 96\)"):
        FILLED.at(40, 96)


def test_a_budget_of_patches_fills_nothing_up() -> None:
    budget = FILLED.with_budget(6, 8)
    assert budget.multiple == 0 and budget(make_image(40, 60)).shape[-2:] == (16, 24)


@pytest.mark.parametrize("resize", ["letterbox", "square"])
@pytest.mark.parametrize("size", [(20, 40), (40, 20), (31, 40)])
def test_bars_go_around_an_image_that_a_mean_has_resized(resize, size) -> None:
    fill = (9, 8, 7) if resize == "letterbox" else (0, 0, 0)
    plain = dataclasses.replace(FLOAT, resize=resize, resize_to=(24, 24), fill=fill)
    mean = dataclasses.replace(plain, before=(ImageStep(kind="squash", size=size, kernel="mean"),))
    image = make_image(2 * size[0], 2 * size[1])
    halved = np.asarray(image, dtype=np.float64).reshape(size[0], 2, size[1], 2, 3).mean(axis=(1, 3))
    rounded = plain(halved.round().astype(np.uint8))
    assert (mean(image) - rounded).abs().max() < 0.6 * FLOAT.rescale / min(FLOAT.std)
