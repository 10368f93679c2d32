"""The fast ways to pixels give Pillow's bytes: JPEG files by simplejpeg, resizes by products of whole numbers."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vlm_vision.data.stored_image import StoredImage, open_pixels
from vlm_vision.preprocess import jpeg_file, pillow_resize
from vlm_vision.preprocess.images import load_image, load_pixels
from vlm_vision.preprocess.spec import Preprocess

SIZES = ((97, 131), (64, 64), (17, 250), (250, 17), (1, 1), (9, 8))
SUBSAMPLINGS = ("444", "422", "420", "440", "411")


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Large shapes, fine grain and saturated colors, as photos have."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    return np.clip(
        np.asarray(coarse, dtype=np.int64) * 1.3 - 40 + draw.normal(0, 9, (height, width, 3)), 0, 255
    ).astype(np.uint8)


@pytest.fixture
def simplejpeg():
    return pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def decoded(data: bytes) -> np.ndarray | None:
    return jpeg_file.decode_jpeg(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [35, 90, 100])
def test_every_subsampling_decodes_to_pillows_bytes(simplejpeg, subsampling: str, quality: int) -> None:
    for size in SIZES:
        data = simplejpeg.encode_jpeg(smooth(*size), quality=quality, colorsubsampling=subsampling)
        pixels = decoded(data)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}, {"keep_rgb": True}]
)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_every_coding_decodes_to_pillows_bytes(simplejpeg, options: dict, subsampling: int) -> None:
    if "keep_rgb" in options and subsampling:
        options = options | {"quality": 60}
    for size in SIZES:
        held = io.BytesIO()
        Image.fromarray(smooth(*size)).save(
            held, "JPEG", subsampling=0 if "keep_rgb" in options else subsampling, **options
        )
        pixels = decoded(held.getvalue())
        assert pixels is not None
        np.testing.assert_array_equal(pixels, by_pillow(held.getvalue()))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("progressive", [False, True])
def test_exif_orientation_is_applied(simplejpeg, tmp_path: Path, orientation: int, progressive: bool) -> None:
    exif, path = Image.Exif(), tmp_path / "photo.jpg"
    exif[0x0112] = orientation
    Image.fromarray(smooth(33, 50)).save(path, exif=exif, progressive=progressive)
    pixels = decoded(path.read_bytes())
    assert pixels is not None and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, by_pillow(path.read_bytes()))
    np.testing.assert_array_equal(np.asarray(load_image(path)), pixels)
    np.testing.assert_array_equal(load_pixels(path), pixels)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_are_left_to_pillow(simplejpeg, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(smooth(40, 30)).convert(mode).save(path)
    assert decoded(path.read_bytes()) is None
    np.testing.assert_array_equal(load_pixels(path), by_pillow(path.read_bytes()))


def test_what_simplejpeg_refuses_is_left_to_pillow_and_its_words(simplejpeg, tmp_path: Path) -> None:
    held = io.BytesIO()
    Image.fromarray(smooth(60, 60)).save(held, "JPEG")
    half = held.getvalue()[: len(held.getvalue()) // 2]
    assert decoded(half) is None
    (tmp_path / "half.jpg").write_bytes(half)
    with pytest.raises(ValueError, match="half.jpg' cannot be decoded .*it is truncated or damaged, replace it"):
        load_pixels(tmp_path / "half.jpg")
    loaded = Image.open(io.BytesIO(held.getvalue()))
    loaded.load()
    assert jpeg_file.decode_jpeg(loaded) is None
    small = Image.open(io.BytesIO(held.getvalue()))
    small.draft("RGB", (20, 20))
    assert jpeg_file.decode_jpeg(small) is None
    assert np.asarray(load_image(small)).shape[0] < 60


class Held(StoredImage):
    def __init__(self, data: bytes):
        self.data = data

    def __str__(self) -> str:
        return "held"

    def read(self) -> bytes:
        return self.data

    def version(self) -> str:
        return "1"


def test_pixels_are_equal_with_and_without_simplejpeg(simplejpeg, tmp_path: Path, monkeypatch) -> None:
    exif, path = Image.Exif(), tmp_path / "photo.jpg"
    exif[0x0112] = 6
    Image.fromarray(smooth(500, 700)).save(path, exif=exif)
    steps = Preprocess(
        resize="shortest_edge", resize_to=(48, 48), resample="bicubic", crop=(40, 40), rescale=1 / 255, mean=(0.5, 0.4, 0.3), std=(1, 1, 1)
    )  # fmt: skip
    stored = open_pixels(Held(path.read_bytes()))
    assert isinstance(stored, np.ndarray)
    with Image.open(path) as opened:
        fast = [steps(path), steps(stored), steps(opened), steps(load_image(path))]
    monkeypatch.setattr(jpeg_file, "decoder", None)
    stored = open_pixels(Held(path.read_bytes()))
    assert isinstance(stored, Image.Image)
    for pixels in (*fast, steps(stored)):
        assert torch.equal(pixels, steps(path))


@pytest.fixture
def products(monkeypatch):
    """Every size is resized by products, where the processor can."""
    if not pillow_resize._has_vnni():
        pytest.skip("the processor has no VNNI, so that Pillow resizes")
    monkeypatch.setattr(pillow_resize, "_LEAST_PIXELS", 0)
    monkeypatch.setattr(pillow_resize, "_LEAST_SHRINK", {"bilinear": 1.0, "bicubic": 1.0})
    pillow_resize._ways.clear()


def test_products_give_pillows_bytes_at_every_size(products) -> None:
    draw, ways = np.random.default_rng(0), set()
    for _ in range(40):
        height, width = (int(side) for side in draw.integers(30, 500, 2))
        size = int(draw.integers(1, min(height, 180))), int(draw.integers(1, min(width, 180)))
        resample = ("bilinear", "bicubic")[draw.integers(2)]
        for seed in range(4):
            pixels = smooth(height, width, seed)
            if seed == 3:
                pixels = np.where(pixels < 128, np.uint8(0), np.uint8(255))
            image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling[resample.upper()])
            np.testing.assert_array_equal(pillow_resize.resize_rgb(pixels, size, resample), image)
        ways.add(pillow_resize._ways[height, width, *size, resample])
    assert ways <= {"across", "down"}


def test_the_way_is_that_of_pillow_or_none(products, monkeypatch) -> None:
    pixels, flat = smooth(300, 400), np.full((300, 400, 3), 7, dtype=np.uint8)
    for _ in range(3):
        pillow_resize.resize_rgb(flat, (50, 60), "bicubic")
    assert set(pillow_resize._ways.values()) == {"seen"}
    pillow_resize.resize_rgb(pixels, (50, 60), "bicubic")
    assert set(pillow_resize._ways.values()) <= {"across", "down"}
    pillow_resize._ways.clear()
    monkeypatch.setattr(pillow_resize, "_resized", lambda pixels, size, *way: np.zeros((*size, 3), dtype=np.uint8))
    expected = Image.fromarray(pixels).resize((60, 50), Image.Resampling.BICUBIC)
    for _ in range(3):
        np.testing.assert_array_equal(pillow_resize.resize_rgb(pixels, (50, 60), "bicubic"), expected)
    assert set(pillow_resize._ways.values()) == {"pillow"}


def test_few_sizes_are_remembered(products, monkeypatch) -> None:
    monkeypatch.setattr(pillow_resize, "_MOST_SIZES", 2)
    for width in (30, 40, 50):
        pillow_resize.resize_rgb(smooth(60, width), (20, 20), "bilinear")
    assert [key[1] for key in pillow_resize._ways] == [40, 50]
