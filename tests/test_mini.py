"""The pair that comes with the package: found by name, small, used by every way of loading, knows what it was taught."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import vlm_vision as vv
from vlm_vision.checkpoints.hub import SHIPPED
from vlm_vision.data.conversations.easy_vqa import captioned_images


@pytest.fixture(scope="module")
def pair() -> vv.Pair:
    return vv.load_pair("mini")


def test_it_is_small_and_has_a_card():
    files = list(SHIPPED["mini"].iterdir())
    assert sum(file.stat().st_size for file in files) < 12e6
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= {file.name for file in files}


def test_each_way_of_loading_finds_it(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()  # a folder of that name is ./mini
    encoder, text = vv.load("mini"), vv.load_text("mini")
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(encoder(pixels).pooled, pair.image(pixels).pooled)
    assert torch.equal(text.encode(["a red circle"]), pair.text.encode(["a red circle"]))
    with pytest.raises(ValueError):
        vv.load("./mini")


def test_transformers_computes_the_same(pair):
    theirs = AutoModel.from_pretrained(SHIPPED["mini"], dtype=torch.float32).eval()
    pixels, ids = torch.rand(2, 3, 64, 64), pair.text.tokenizer(["a red circle", "grinning face"])
    with torch.no_grad():
        ours, wanted = pair(pixels, ids).logits_per_image, theirs(input_ids=ids, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_it_names_the_color_and_form_of_images_it_never_saw(pair):
    told = captioned_images("test")[:120]
    kinds = sorted({kind for _, _, kind in told})
    likely = pair.similarity([Path(path) for path, _, _ in told], [f"a medium {kind} in the middle" for kind in kinds])
    named = [kinds[i] for i in likely.argmax(dim=1)]
    colors = [a.split()[0] == kind.split()[0] for a, (_, _, kind) in zip(named, told, strict=True)]
    assert sum(colors) >= 114
    assert sum(a == kind for a, (_, _, kind) in zip(named, told, strict=True)) >= 84
