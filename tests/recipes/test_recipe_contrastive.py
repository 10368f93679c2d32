"""Contrastive training: pairs from nothing, locked towers, saved for transformers."""

from pathlib import Path

import pytest
import torch
from support.recipe_records.contrastive import CLIP, IMAGE, RECIPE, TEXT
from transformers import AutoModel, AutoTokenizer

import vlm_vision as vv
from vlm_vision.new_models import learn_tokenizer, new_pair

train = RECIPE.train


@pytest.fixture(scope="module")
def folder(bench) -> Path:
    return bench("contrastive").folder


@pytest.mark.parametrize("kind", [[], CLIP])
def test_images_and_captions_find_each_other(folder, tmp_path, kind):
    test = [
        "--data.test",
        str(folder / "pairs.csv"),
        "--steps",
        "200",
        "--batch_size",
        "16",
        "--micro_batch_size",
        "16",
    ]
    found = train(folder, tmp_path / "run", *test, "--crop_scale", "[1.0, 1.0]", *kind)
    assert found["losses"][-1] < 0.3 * found["losses"][0]
    assert found["test"]["image_to_text"]["recall"][1] >= 0.75
    assert found["test"]["image_to_text"]["chance"][1] == pytest.approx(1 / 16)


def test_a_locked_image_tower_stays_as_it_is(folder, tmp_path):
    train(folder, tmp_path / "first", "--steps", "2")
    before = vv.load(tmp_path / "first" / "model").state_dict()
    train(folder, tmp_path / "second", "--start", str(tmp_path / "first/model"), "--lock_image", "true")
    locked = ["--lock_image", "true", "--towers.image_source", str(tmp_path / "first/model")]
    train(folder, tmp_path / "third", *locked)
    for run_ in ("second", "third"):
        after = vv.load(tmp_path / run_ / "model").state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@torch.no_grad()
def test_transformers_reads_a_new_pair(tmp_path, kind):
    learn_tokenizer(["a red cat", "two green dogs"] * 3, tmp_path / "words", kind=kind, vocab_size=280)
    pair = new_pair(kind, image=IMAGE, text=TEXT, tokenizer=tmp_path / "words").eval()
    pair.save_pretrained(tmp_path / "saved")
    theirs, info = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    texts, pixels = ["a red cat", "Two dogs."], torch.randn(3, 3, 16, 16)
    ids = pair.text.tokenizer(texts)
    torch.testing.assert_close(theirs(ids, pixels).logits_per_image, pair(pixels, ids).logits_per_image)
    again = vv.load_pair(tmp_path / "saved")
    assert torch.equal(again.text.tokenizer(texts), ids)
    words = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert words.decode(ids[0], skip_special_tokens=True).strip() == "a red cat"
