"""What OpenVLA's evaluation does to a camera's image, and the bars of pi0 and SmolVLA: TensorFlow's, LeRobot's, openpi's pixels."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.models import make_image

import vlm_vision as vv
from vlm_vision.checkpoints.hf.preprocess import from_hf
from vlm_vision.checkpoints.lerobot.reader import _preprocess
from vlm_vision.fused import FusedPreprocess
from vlm_vision.preprocess.jpeg import round_trip
from vlm_vision.preprocess.openvla import EVALUATIONS, CameraPath
from vlm_vision.preprocess.spec import HALF, IMAGENET, Preprocess
from vlm_vision.preprocess.tf_image import center_crop, lanczos3

NAIVE = Preprocess(
    resize="squash", resize_to=(224, 224), resample="bicubic", crop=None, rescale=1 / 255, mean=HALF[0], std=HALF[1]
)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """Written by TensorFlow 2.21 through benchmarks/openvla_preprocess_parity.py."""
    with np.load(Path(__file__).parents[1] / "data" / "openvla_camera.npz") as found:
        return dict(found)


@pytest.mark.parametrize("name", ["odd", "blocks", "sized", "narrow"])
def test_each_step_is_tensorflows_to_the_bit(golden, name):
    jpeg, resized = golden[f"{name}.jpeg"], golden[f"{name}.resized"]
    side = resized.shape[0]
    assert not np.array_equal(jpeg, golden[name])
    np.testing.assert_array_equal(round_trip(golden[name]), jpeg)
    np.testing.assert_array_equal(lanczos3(jpeg, side, side), resized)
    np.testing.assert_array_equal(center_crop(resized, 0.9, side, side), golden[f"{name}.cropped"])


def test_pillow_decodes_the_same_file_otherwise_but_writes_the_same(golden):
    """Encoding is told by the mean over a flat block: only the inverse transform differs from Pillow's."""
    file = io.BytesIO()
    Image.fromarray(golden["blocks"]).save(file, "JPEG", quality=95)
    pillow = np.asarray(Image.open(file)).astype(int)
    difference = np.abs(pillow - golden["blocks.jpeg"])
    assert 1 <= difference.max() <= 20 and difference.mean() < 3
    flat = np.full((16, 16, 3), (200, 30, 90), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(flat).save(file, "JPEG", quality=95)
    assert np.abs(np.asarray(Image.open(file)).astype(int) - round_trip(flat)).max() <= 2


@pytest.mark.parametrize("quality", [1, 30, 95, 100])
@pytest.mark.parametrize("size", [(1, 1), (9, 17), (32, 16)])
def test_jpeg_of_any_size_and_quality_comes_near_pillows(size, quality):
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([rows * 7, columns * 5, rows + columns], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    pillow = np.asarray(Image.open(file)).astype(int)
    assert np.abs(pillow - round_trip(pixels, quality)).mean() < 2.5


def test_the_path_is_its_steps_in_order(golden):
    side = golden["odd.resized"].shape[0]
    path = CameraPath(side=side, crop_area=0.9)
    np.testing.assert_array_equal(np.asarray(path(Image.fromarray(golden["odd"]))), golden["odd.cropped"])
    plain = dataclasses.replace(path, crop_area=1.0)
    np.testing.assert_array_equal(np.asarray(plain(Image.fromarray(golden["odd"]))), golden["odd.resized"])
    sized = Image.fromarray(golden["sized"])
    np.testing.assert_array_equal(np.asarray(plain(sized)), golden["sized.resized"])
    kept = dataclasses.replace(plain, keep_sized=True)
    np.testing.assert_array_equal(np.asarray(kept(sized)), golden["sized"])
    np.testing.assert_array_equal(np.asarray(kept(Image.fromarray(golden["odd"]))), golden["odd.resized"])


def test_an_image_that_its_past_changes_nothing_about_stays_as_it_is():
    flat = np.full((50, 70, 3), 128, dtype=np.uint8)
    for crop in (False, True):
        pixels = NAIVE.with_evaluation("openvla", crop=crop)(flat)
        torch.testing.assert_close(pixels, NAIVE(flat), rtol=0, atol=1e-6)


def test_evaluation_is_part_of_what_is_saved_and_fingerprinted():
    specs = [NAIVE] + [NAIVE.with_evaluation(name, crop=crop) for name in EVALUATIONS for crop in (False, True)]
    assert len({spec.fingerprint for spec in specs}) == 5
    for spec in specs:
        again = Preprocess.from_dict(json.loads(json.dumps(spec.to_dict())))
        assert again == spec and again.fingerprint == spec.fingerprint and hash(again) == hash(spec)
        assert spec.with_evaluation("none", crop=False) == NAIVE
    assert "camera" not in NAIVE.to_dict()


def test_two_towers_share_one_past(monkeypatch):
    fused = FusedPreprocess((NAIVE, dataclasses.replace(NAIVE, mean=IMAGENET[0], std=IMAGENET[1])))
    seen = fused.with_evaluation("openvla_oft", crop=True)
    calls = []
    walk = CameraPath.__call__
    monkeypatch.setattr(CameraPath, "__call__", lambda self, one: calls.append(one) or walk(self, one))
    images = [make_image(1), make_image(2)]
    pixels = seen(images)
    assert len(calls) == 2
    each = [one(images) for one in seen.towers]
    assert torch.equal(pixels, torch.cat(each, dim=1)) and not torch.equal(pixels, fused(images))
    assert FusedPreprocess.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_it_travels_with_a_saved_encoder_and_may_not_be_changed_there(encoder, tmp_path):
    encoder.preprocess = encoder.preprocess.with_evaluation("openvla", crop=True)
    with pytest.warns(UserWarning, match="transformers has no preprocessing with .*camera"):
        encoder.save_pretrained(tmp_path)
    again = vv.load(tmp_path)
    assert again.preprocess == encoder.preprocess
    assert torch.equal(again.preprocess(make_image()), encoder.preprocess(make_image()))
    sidecar = json.loads((tmp_path / "vlm_vision.json").read_text())
    sidecar["preprocess"]["camera"]["crop_area"] = 1.0
    (tmp_path / "vlm_vision.json").write_text(json.dumps(sidecar))
    with pytest.raises(ValueError, match="was saved with preprocessing"):
        vv.load(tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: NAIVE.with_evaluation("libero", crop=True),
            "evaluation is 'libero': expected one of openvla, openvla_oft",
        ),
        (lambda: CameraPath(jpeg_quality=0), "jpeg_quality is 0.*expected 1 to 100"),
        (lambda: CameraPath(crop_area=0.0), "crop_area 0.0: expected"),
        (lambda: CameraPath(side=True), "side True"),
        (lambda: CameraPath(keep_sized=1), "keep_sized is 1: expected True or False"),
        (lambda: CameraPath.from_dict({"jpeg": 95}), "expected an object with crop_area, jpeg_quality"),
        (lambda: CameraPath.from_dict("openvla"), "camera is 'openvla': expected an object"),
    ],
)
def test_a_path_that_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# ---------------------------------------------------------------------------------------------- pi0, SmolVLA

SIZES = [(40, 36), (30, 90), (36, 17), (24, 24), (9, 9), (64, 48)]


def bars(image: Image.Image, side: int, *, pillow: bool, centered: bool) -> torch.Tensor:
    """resize_with_pad as openpi's client (Pillow) and LeRobot (torch) define it, in -1..1."""
    ratio = max(image.width / side, image.height / side)
    height, width = int(image.height / ratio), int(image.width / ratio)
    if pillow:
        pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
        planes = pixels.permute(2, 0, 1)[None].float() / 255
    else:
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        planes = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
    top, left = ((side - height) // 2, (side - width) // 2) if centered else (side - height, side - width)
    return F.pad(planes, (left, side - width - left, top, side - height - top)) * 2 - 1


POLICIES = {
    "openpi": ({"paligemma_variant": "gemma_2b"}, 224, dict(pillow=True, centered=True)),
    "pi0": ({"type": "pi0", "image_resolution": [24, 24]}, 24, dict(pillow=False, centered=True)),
    "pi05": ({"type": "pi05"}, 224, dict(pillow=False, centered=True)),
    "first pi0": ({"type": "pi0", "resize_imgs_with_padding": [24, 24]}, 24, dict(pillow=False, centered=False)),
    "like pi": (
        {"type": "pi0fast", "resize_imgs_with_padding": [24, 24], "interpolate_like_pi": True},
        24,
        dict(pillow=True, centered=False),
    ),
    "smolvla": ({"type": "smolvla", "resize_imgs_with_padding": [24, 24]}, 24, dict(pillow=False, centered=False)),
    "smolvla of old": ({"type": "smolvla"}, 512, dict(pillow=False, centered=False)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", POLICIES)
def test_bars_are_those_of_the_policys_own_code(name, size):
    config, side, how = POLICIES[name]
    spec, image = _preprocess(Path("folder"), config), make_image(3, *size)
    assert spec.output_size == (side, side)
    torch.testing.assert_close(spec(image), bars(image, side, **how), rtol=0, atol=1e-5)
    assert Preprocess.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_policy_without_padding_takes_images_as_they_come():
    spec = _preprocess(Path("folder"), {"type": "smolvla", "resize_imgs_with_padding": None})
    assert spec(make_image()).shape == (1, 3, 40, 36) and spec(np.zeros((8, 8, 3), np.uint8)).unique().tolist() == [
        -1.0
    ]
    with pytest.raises(ValueError, match="has resize_imgs_with_padding 512: expected two whole numbers above 0"):
        _preprocess(Path("folder"), {"type": "smolvla", "resize_imgs_with_padding": 512})


@pytest.mark.parametrize("size", SIZES)
def test_transformers_own_pi0_puts_the_image_at_the_top_left_on_gray(size):
    config = {"image_processor_type": "PI0ImageProcessor", "size": {"max_height": 24, "max_width": 24}}
    spec, image = from_hf(config | {"pad_size": {"height": 24, "width": 24}}), make_image(3, *size)
    scale = min(24 / image.height, 24 / image.width)
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    shape = int(image.height * scale), int(image.width * scale)
    planes = F.interpolate(planes, shape, mode="bicubic", antialias=True, align_corners=False).float() / 127.5 - 1
    wanted = F.pad(planes, (0, 24 - shape[1], 0, 24 - shape[0]))
    torch.testing.assert_close(spec(image), wanted, rtol=0, atol=1e-5)
