"""A model and its processor on patch tokens out of a store, in place of images."""

import pytest
import torch
from support.models import make_image, tiny_llm, tiny_tokenizer

import vlm_vision as vv
from vlm_vision.load_encoder import load_shape
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.sources.choose import open_sources
from vlm_vision.tokens.training.weightless import has_weights, remove_weights
from vlm_vision.tokens.wanted import Wanted
from vlm_vision.vlm.image_processor import encoder_from_dict

TEXTS = ["<image> what color ?", "is <image> like <image> ?"]


@pytest.fixture
def images(tmp_path) -> list[str]:
    for i in range(3):
        make_image(i, 40, 30 + i).save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(3)]


@torch.no_grad()
def test_rows_of_a_store_give_the_logits_and_the_answer_of_their_images(vlm, images, tmp_path):
    extract(open_sources([str(tmp_path)]), vlm.encoder, tmp_path / "store", wanted=Wanted(parts=("patch_tokens",)))
    store = vv.TokenStore(tmp_path / "store")
    rows = [store[f"{i}.png"].patch_tokens for i in range(3)]
    live = vlm.processor(text=TEXTS, images=images)
    stored = vlm.processor(text=TEXTS, patch_tokens=rows)
    assert torch.equal(live["input_ids"], stored["input_ids"]) and "pixel_values" not in stored
    torch.testing.assert_close(vlm(**stored).logits, vlm(**live).logits, rtol=0, atol=1e-4)
    answers = (vlm.generate(**batch, max_new_tokens=4, do_sample=False) for batch in (stored, live))
    assert torch.equal(*answers)
    features = [
        vlm.get_image_features(patch_tokens=store.patch_tokens(range(3))),
        vlm.get_image_features(live["pixel_values"]),
    ]
    for one, other in zip(*features, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_grid_comes_with_tokens_of_any_shape(encoder):
    encoder.preprocess = encoder.preprocess.with_budget(16, 8)
    vlm = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer(), layout=vv.Native(16))
    live = vlm.processor(text=TEXTS[:1], images=[make_image(0, 16, 40)])
    ((tokens, grid),) = vlm.encode(live["pixel_values"], live["image_sizes"])
    stored = vlm.processor(text=TEXTS[:1], patch_tokens=tokens, grid=grid)
    assert grid[0] != grid[1]
    torch.testing.assert_close(vlm(**stored, grid=grid).logits, vlm(**live).logits)
    answers = (vlm.generate(**b, max_new_tokens=4, do_sample=False) for b in (dict(stored, grid=grid), live))
    assert torch.equal(*answers)
    with pytest.raises(ValueError, match="images have no fixed size: pass the grid of the patch_tokens"):
        vlm.processor(text=TEXTS[:1], patch_tokens=tokens)


def test_tokens_that_do_not_fit_are_refused_with_one_sentence(vlm, images):
    tokens = torch.zeros(3, 16, 32)
    with pytest.raises(ValueError, match="there are patch_tokens of 2 images: pass one row for each"):
        vlm.processor(text=TEXTS, patch_tokens=tokens[:2])
    with pytest.raises(ValueError, match="patch_tokens take the place of images and videos: pass one of them"):
        vlm.processor(text=TEXTS, images=images, patch_tokens=tokens)
    with pytest.raises(ValueError, match="patch_tokens have different shapes"):
        vlm.processor(text=TEXTS, patch_tokens=[tokens[0], tokens[1, :4], tokens[2]])
    for wrong in (tokens[:, :9], tokens[..., :16], tokens[0]):
        with pytest.raises(ValueError, match=r"expected \(images, 16, 32\) of a grid of 4x4"):
            vlm.processor(text=TEXTS, patch_tokens=wrong)
        with pytest.raises(ValueError, match=r"expected \(images, 16, 32\) of a grid of 4x4"):
            vlm(input_ids=torch.ones(1, 4, dtype=torch.long), patch_tokens=wrong)
    tiled = vv.VisionLanguageModel.attach(
        vlm.encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer(), layout=vv.AnyRes(((32, 64),))
    )
    with pytest.raises(ValueError, match="layout 'anyres' has several canvases for each image: pass pixel_values"):
        tiled.processor(text=TEXTS, patch_tokens=tokens)


@torch.no_grad()
def test_a_model_without_the_weights_of_its_encoder_answers_from_tokens_and_is_not_saved(vlm, images, tmp_path):
    tokens = vlm.encoder(vlm.encoder.preprocess(images)).patch_tokens
    batch = vlm.processor(text=TEXTS, patch_tokens=tokens)
    wanted = vlm(**batch).logits
    vlm.save_pretrained(tmp_path / "model")
    with torch.device("meta"):
        tower = remove_weights(encoder_from_dict(vlm.config.encoder_config))
    light = vv.VisionLanguageModel.from_pretrained(tmp_path / "model", encoder=tower)
    assert not has_weights(light.encoder) and not any("encoder" in name for name in light.state_dict())
    torch.testing.assert_close(light(**batch).logits, wanted)
    with pytest.raises(ValueError, match="this encoder has no weights, as its tokens are read from a store"):
        light(**light.processor(text=TEXTS, images=images))
    with pytest.raises(ValueError, match="the encoder of this model has no weights: set model.encoder"):
        light.save_pretrained(tmp_path / "again")
    light.encoder = vlm.encoder
    light.save_pretrained(tmp_path / "again")


def test_the_shape_of_an_encoder_is_that_of_the_loaded_one(monkeypatch):
    loaded = vv.load("mini", tap=vv.Tap(-2, False), image_size=96)
    monkeypatch.setattr("vlm_vision.load_encoder.build", lambda *a, **k: pytest.fail("weights were read"))
    shape = load_shape("mini", tap=vv.Tap(-2, False), image_size=96)
    assert shape.to_dict() == loaded.to_dict() and shape.device.type == "meta"
    fused = load_shape("mini + mini")
    assert fused.embed_dim == 2 * loaded.embed_dim
    assert remove_weights(fused).embed_dim == 2 * loaded.embed_dim and not has_weights(fused)
