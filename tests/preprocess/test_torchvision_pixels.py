"""Preprocessing of pixels="torchvision" against transformers' torchvision classes, stored by tests/data/torchvision_pixels.py."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vlm_vision as vv
from vlm_vision.checkpoints.hf.backends import ONE
from vlm_vision.checkpoints.hf.preprocess import DEFAULTS, from_hf
from vlm_vision.checkpoints.hf.write_preprocess import to_hf
from vlm_vision.cli.main import main

STORED = Path(__file__).parents[1] / "data" / "torchvision_pixels.npz"
with np.load(STORED) as stored:
    DESCRIBED = json.loads(str(stored["described"]))
LANCZOS = hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 33}


def image(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def cases(label: str) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    with np.load(STORED) as stored:
        for key in stored.files:
            if key.startswith(f"{label}/"):
                height, width = map(int, key.rpartition("/")[2].split("x"))
                yield (height, width), stored[key]


@pytest.mark.parametrize("label", DESCRIBED)
def test_pixels_are_those_of_the_torchvision_class(label: str) -> None:
    spec = from_hf(DESCRIBED[label], "torchvision")
    if spec.resample == "lanczos" and not LANCZOS:
        pytest.skip("this torch is older than 2.12, which has no Lanczos filter")
    every = 20 if label.startswith("Aria") else 1
    compared = 0
    for shape, expected in cases(label):
        pixels = spec.each(image(*shape))[0][:, ::every, ::every]
        torch.testing.assert_close(pixels, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
        compared += 1
    assert compared


def test_every_class_is_compared() -> None:
    compared = {label.partition("/")[0] for label in DESCRIBED}
    same_code = {"Ernie4_5_VL_MoeImageProcessor"}  # an old name of another
    no_torchvision = {"InstructBlipVideoImageProcessor", "VideoLlavaImageProcessor"}
    not_equal = {"Llama4ImageProcessor"}  # normalizes in bfloat16
    no_resize = {"Inkling2ImageProcessor"}
    assert DEFAULTS.keys() - compared == same_code | no_torchvision | not_equal | no_resize


def test_classes_in_one_backend_are_those_of_transformers() -> None:
    folder = Path(transformers.__file__).parent / "models"
    text = "".join(path.read_text() for path in sorted(folder.glob("*/image_processing_*.py")))
    for name in DEFAULTS:
        if f"class {name}(" in text:
            assert (f"class {name}Pil(" not in text) == (name in ONE), name


@pytest.mark.parametrize("label", [label for label in DESCRIBED if label.partition("/")[0] in ONE])
def test_a_class_in_one_backend_has_one_answer(label: str) -> None:
    assert from_hf(DESCRIBED[label], "torchvision") == from_hf(DESCRIBED[label])


def test_the_backend_is_in_the_spec_and_its_fingerprint() -> None:
    pil, torchvision = from_hf(CLIP), from_hf(CLIP, "torchvision")
    assert torchvision == dataclasses.replace(pil, kernel="torch")  # the crop lies within every image
    assert torchvision.fingerprint != pil.fingerprint
    larger = from_hf(CLIP | {"crop_size": 41}, "torchvision")
    assert larger == dataclasses.replace(pil, kernel="torch", crop=(41, 41), crop_rounding="truncated")
    plain = CLIP | {"do_resize": False, "do_center_crop": False}
    assert from_hf(plain, "torchvision") == from_hf(plain)


def test_unknown_backend_or_filter() -> None:
    with pytest.raises(ValueError, match="pixels is 'pill': expected one of pil, torchvision; did you mean 'pil'"):
        from_hf(CLIP, "pill")
    with pytest.raises(ValueError, match="filter 'hamming', which torchvision lacks: expected one of nearest, lanczos"):
        from_hf(CLIP | {"resample": 5}, "torchvision")
    pix2struct = {"image_processor_type": "Pix2StructImageProcessor"}
    spec = from_hf(pix2struct, "torchvision")
    assert spec == dataclasses.replace(from_hf(pix2struct), sample_deviation=True)
    with pytest.raises(ValueError, match="this by a sample's"):
        to_hf(spec)
    with pytest.raises(ValueError, match="sample_deviation is True but standardize is False"):
        dataclasses.replace(from_hf(CLIP), sample_deviation=True)


def test_a_filter_wider_than_the_image_is_refused() -> None:
    spec = from_hf(
        {"image_processor_type": "Owlv2ImageProcessor", "do_pad": False, "size": {"height": 2, "width": 2}},
        "torchvision",
    )
    with pytest.raises(
        ValueError, match="an image of 300x4 pixels is smaller than the filter before its resize to 2x2"
    ):
        spec(image(300, 4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = transformers.CLIPVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path)
    described = CLIP | {"crop_size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    return tmp_path


def test_load_takes_the_backend_and_save_keeps_it(folder: Path, tmp_path: Path) -> None:
    encoder, usual = vv.load(folder, pixels="torchvision"), vv.load(folder)
    assert encoder.preprocess == dataclasses.replace(usual.preprocess, kernel="torch")  # type: ignore[type-var]
    with pytest.warns(UserWarning, match="vlm_vision.json keeps the exact one"):
        encoder.save_pretrained(tmp_path / "torchvision")
    usual.save_pretrained(tmp_path / "pil")
    assert vv.load(tmp_path / "torchvision").preprocess == encoder.preprocess
    assert vv.load(tmp_path / "torchvision", pixels="torchvision").preprocess == encoder.preprocess
    with pytest.raises(ValueError, match="was saved with another preprocessing, fingerprint .* leave pixels out"):
        vv.load(tmp_path / "pil", pixels="torchvision")


def test_tokens_of_either_backend_are_told_apart(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image(40, 50).save(tmp_path / "a.png")
    command = ["tokens", str(tmp_path / "a.png"), "--encoder", str(folder), "--out", str(tmp_path / "store")]
    assert main([*command, "--pixels", "torchvision"]) == 0
    about = vv.TokenStore(tmp_path / "store").about
    assert about["preprocess_fingerprint"] == vv.load(folder, pixels="torchvision").preprocess.fingerprint
    assert main(command) == 2
    assert "preprocess" in capsys.readouterr().err
    assert vv.TokenStore(tmp_path / "store").about == about


def test_load_refuses_another_name_or_format(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pixels is 'tv': expected one of pil, torchvision"):
        vv.load(folder, pixels="tv")
    with pytest.warns(UserWarning, match="timm has no preprocessing with crop_rounding 'floor'"):
        vv.load(folder).save_pretrained(tmp_path / "timm", format="timm")
    with pytest.raises(ValueError, match="is of format timm, whose own code makes its pixels: .* leave pixels out"):
        vv.load(tmp_path / "timm", pixels="torchvision")
