"""The bytes of a store do not depend on which decoder read its images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlm_vision as vv
from vlm_vision.preprocess import jpeg_file
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.sources.choose import SourceOptions, open_sources
from vlm_vision.tokens.wanted import Wanted


def test_a_store_has_the_same_bytes_with_and_without_simplejpeg(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    draw, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for i in range(5):
        coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        coarse.resize((640 + 7 * (i % 2), 480), Image.Resampling.BICUBIC).save(images / f"{i}.jpg", quality=60 + 8 * i)
    read = []
    for name in ("with", "without"):
        source = open_sources([str(images)], SourceOptions())
        extract(source, vv.load("mini"), tmp_path / name, wanted=Wanted(batch_size=2), workers=2)  # pyright: ignore
        read.append({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()})
        monkeypatch.setattr(jpeg_file, "decoder", None)
    assert read[0] == read[1] and len(read[0]) > 3
