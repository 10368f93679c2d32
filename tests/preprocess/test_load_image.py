"""Reading images: every mode, every kind of input, every kind of damage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_vision.preprocess.images import load_image
from vlm_vision.preprocess.spec import Preprocess

WHOLE = Preprocess(
    resize="none", resize_to=(0, 0), resample="bicubic", crop=None, rescale=1.0, mean=(0, 0, 0), std=(1, 1, 1)
)
"""Leaves the image as it is."""


def make_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def palette(**options) -> tuple[Image.Image, dict]:
    return Image.fromarray(make_image(23, 17)).quantize(16), options


ENCODED = {
    "RGB.png": lambda: (Image.fromarray(make_image(23, 17)), {}),
    "RGB.jpg": lambda: (Image.fromarray(make_image(23, 17)), {"quality": 90}),
    "RGB.webp": lambda: (Image.fromarray(make_image(23, 17)), {"lossless": True}),
    "L.png": lambda: (Image.fromarray(make_image(23, 17, 1)), {}),
    "L-transparent.png": lambda: (Image.fromarray(make_image(23, 17, 1)), {"transparency": 3}),
    "RGBA.png": lambda: (Image.fromarray(make_image(23, 17, 4)), {}),
    "LA.png": lambda: (Image.fromarray(make_image(23, 17, 4)).convert("LA"), {}),
    "CMYK.jpg": lambda: (Image.fromarray(make_image(23, 17)).convert("CMYK"), {}),
    "1.png": lambda: (Image.fromarray(make_image(23, 17, 1)).convert("1"), {}),
    "P.png": lambda: palette(),
    "P.gif": lambda: palette(),
    "P-index.png": lambda: palette(transparency=3),
    "P-bytes.png": lambda: palette(transparency=bytes(range(0, 256, 16))),
    "I-of-8-bits.tiff": lambda: (Image.fromarray(make_image(23, 17, 1).astype(np.int32)), {}),
    "F-of-8-bits.tiff": lambda: (Image.fromarray(make_image(23, 17, 1).astype(np.float32) * 0.99), {}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ENCODED)
def test_every_mode_is_read_as_transformers_processors_read_it(tmp_path: Path, name: str, recwarn) -> None:
    from transformers.image_transforms import convert_to_rgb

    image, options = ENCODED[name]()
    path = tmp_path / name
    image.save(path, **options)
    ours = load_image(path)
    with Image.open(path) as opened:
        assert opened.mode == name.split("-")[0].split(".")[0]
        expected = convert_to_rgb(opened, return_numpy=True)
    assert ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), expected)
    assert len(recwarn) == 0


@pytest.mark.filterwarnings("ignore:.*its values above 255 become white")
@pytest.mark.parametrize("name", ["grey.png", "grey.tiff", "grey.pgm"])
def test_16_bit_gray_is_what_transformers_makes_of_it(tmp_path: Path, name: str) -> None:
    from transformers.image_transforms import convert_to_rgb

    shades = np.linspace(0, 65535, 16 * 16).round().astype(np.uint16).reshape(16, 16)
    shades[0] = np.arange(16)
    Image.fromarray(shades).save(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        expected = convert_to_rgb(opened, return_numpy=True)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / name)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_files_and_to_pil_images(tmp_path: Path, orientation: int) -> None:
    from transformers.image_utils import load_image as reference

    pixels, path = make_image(20, 30), tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    expected = np.asarray(reference(str(path)))
    assert expected.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))
    np.testing.assert_array_equal(np.asarray(load_image(path)), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(load_image(opened)), expected)


def test_an_image_is_the_same_as_path_pil_numpy_and_torch(tmp_path: Path) -> None:
    pixels = make_image(23, 17)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (
        path,
        str(path),
        Image.fromarray(pixels),
        pixels,
        planes,
        planes.contiguous(),
        np.asfortranarray(pixels),
    ):
        assert torch.equal(WHOLE(image), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_may_be_gray_or_carry_alpha_which_is_laid_on_white(channels: int) -> None:
    pixels = make_image(9, 7, 4)[..., :channels]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    image = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
    assert image.mode == mode
    rgb = load_image(image)
    expected = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].float()
    assert torch.equal(WHOLE(pixels), expected)
    assert torch.equal(WHOLE(torch.from_numpy(pixels).permute(2, 0, 1)), expected)
    if channels == 1:
        assert torch.equal(WHOLE(pixels[..., 0]), expected)
        assert torch.equal(WHOLE(torch.from_numpy(pixels[..., 0])), expected)


def test_loading_leaves_the_given_image_alone() -> None:
    image = Image.fromarray(make_image(9, 7))
    load_image(image).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), make_image(9, 7))


def broken(tmp_path: Path) -> dict[str, Path]:
    Image.fromarray(make_image(64, 64)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(data[: len(data) // 2])
    Image.fromarray(make_image(64, 64)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    return {
        name: tmp_path / name for name in ("truncated.jpg", "truncated.png", "text.jpg", "empty.png", "none.png", ".")
    }


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.png", "^image file '.*none.png' does not exist: expected the path of a local image; check the path$"),
        (".", "^image file '.*' is a folder: expected the path of one image"),
        ("text.jpg", "^image file '.*text.jpg' is not an image that Pillow can read: expected JPEG"),
        ("empty.png", "^image file '.*empty.png' is not an image that Pillow can read"),
        (
            "truncated.jpg",
            "^image file '.*truncated.jpg' cannot be decoded .*: expected a complete image; it is trunc",
        ),
        (
            "truncated.png",
            "^image file '.*truncated.png' cannot be decoded .*: expected a complete image; it is trunc",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_image(broken(tmp_path)[name])


def test_a_truncated_pil_image_is_refused_when_it_is_decoded(tmp_path: Path) -> None:
    with Image.open(broken(tmp_path)["truncated.jpg"]) as opened:
        with pytest.raises(ValueError, match="^the PIL image cannot be decoded"):
            load_image(opened)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [11, 30])
def test_a_decompression_bomb_is_one_error_and_no_warning(tmp_path: Path, monkeypatch, recwarn, side: int) -> None:
    Image.fromarray(make_image(side, side)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns at 11 x 11, raises at 30 x 30
    with pytest.raises(
        ValueError, match="bomb.png' has .* pixels: expected at most PIL.Image.MAX_IMAGE_PIXELS, 100; shrink it"
    ):
        load_image(tmp_path / "bomb.png")
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            r"numpy array of dtype float32 .* expected uint8 in 0..255; .*astype\(np.uint8\)$",
        ),
        (torch.zeros(3, 4, 4), r"torch tensor of dtype float32 .* expected uint8 in 0..255; .*\.to\(torch.uint8\)$"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), "torch tensor of dtype bfloat16"),
        (np.zeros((4, 4), np.uint16), "numpy array of dtype uint16"),
        (
            np.zeros((3, 4, 6), np.uint8),
            r"shape \(3, 4, 6\) is not one image: expected \(H, W, C\).*transpose\(1, 2, 0\)",
        ),
        (
            torch.zeros(4, 6, 3).byte()[:2],
            r"shape \(2, 6, 3\) is not one image: expected \(C, H, W\).*permute\(2, 0, 1\)",
        ),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\).*pass a batch to Preprocess"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\) has no pixels"),
        (torch.zeros(3, 4, 0).byte(), r"shape \(3, 4, 0\) has no pixels"),
        (Image.new("RGB", (0, 5)), r"size \(0, 5\) has no pixels"),
        (None, "type NoneType is not supported: expected a path, a PIL image"),
        (b"bytes", "type bytes is not supported: expected a path, a PIL image"),
    ],
)
def test_a_bad_image_is_refused_in_one_sentence(image, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        load_image(image)
    assert "\n" not in str(caught.value)
