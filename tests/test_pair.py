"""Image and text towers together: their references' embeddings and logits, and images against texts."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import golden as cases
from support.golden import TOLERANCE, error, golden_case, source
from support.models import make_image, tiny_tokenizer
from transformers import AutoModel

from vlm_vision.pair import Pair, load_pair
from vlm_vision.preprocess.tokenizer import TextTokenizer


def letters(context_length):
    """A tokenizer of letters, for towers without one."""

    def pieces(texts):
        return [[ord(letter) % 90 for letter in text] for text in texts]

    return TextTokenizer(pieces, context_length=context_length, end=[1], pad_id=1)


@pytest.mark.parametrize("name", cases.PAIRS)
@torch.inference_mode()
def test_a_pair_equals_its_reference(name):
    errors = cases.pair_errors(name)
    assert len(errors) >= 4 and max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", ["bv_siglip", "bv_siglip2_scan"])
def test_scale_and_bias_are_the_stored_ones_and_embeddings_have_length_one(name):
    golden = load_file(golden_case(name) / "golden.safetensors")
    pair = load_pair(source(name))
    assert pair.logit_scale == golden["t"] and pair.logit_bias == golden["b"]
    out = pair(
        golden["pixel_values.native"] if "pixel_values.native" in golden else golden["pixel_values"],
        torch.ones(2, 4).long(),
    )
    assert out.image_embeds.norm(dim=-1).sub(1).abs().max() < 1e-5


@torch.inference_mode()
def test_a_list_of_images_of_one_size_is_the_batch_of_them():
    pair = load_pair(source("hf_siglip"))
    pixels, ids = torch.randn(3, 3, 32, 32), torch.randint(0, 200, (2, 16))
    assert error(pair(list(pixels), ids).logits_per_image, pair(pixels, ids).logits_per_image) < TOLERANCE


@pytest.mark.parametrize("name", ["hf_clip_quickgelu", "hf_siglip", "hf_siglip2_naflex"])
def test_images_are_compared_with_texts(name):
    pair = load_pair(source(name), tokenizer=letters(16))
    images, texts = [make_image(0), make_image(1, 30, 60)], ["a cat", "a dog", "two of them"]
    similarity, probabilities = pair.similarity(images, texts), pair.probabilities(images, texts)
    assert similarity.shape == probabilities.shape == (2, 3) and similarity.abs().max() <= 1 + 1e-6
    assert not similarity.requires_grad and (probabilities >= 0).all() and (probabilities <= 1).all()
    logits = pair.logit_scale.exp() * similarity
    if name == "hf_clip_quickgelu":
        assert torch.allclose(probabilities, logits.softmax(-1), atol=1e-6)
    else:
        assert torch.allclose(probabilities, (logits + pair.logit_bias).sigmoid(), atol=1e-6)
    assert pair.similarity(make_image(0), "a cat").shape == (1, 1)


@pytest.mark.parametrize("name", ["hf_clip_quickgelu", "hf_clip_gelu_sharded", "hf_siglip", "hf_siglip2_naflex"])
@torch.inference_mode()
def test_a_saved_pair_is_the_same_for_us_and_for_transformers(tmp_path, name, caplog):
    pair = load_pair(source(name))
    pair.save_pretrained(tmp_path / "saved")
    assert "saved without a tokenizer" in caplog.text
    again = load_pair(tmp_path / "saved")
    state = again.state_dict()
    assert state.keys() == pair.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in pair.state_dict().items())
    assert again.image.to_dict() == pair.image.to_dict() and again.text.config == pair.text.config
    theirs, info = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if name == "hf_siglip2_naflex":
        return  # its pixels are patches
    size = again.image.config.image_size
    pixels, ids = torch.randn(2, 3, *size), torch.randint(3, 90, (3, again.text.config.context_length))
    ids[:, -1] = again.text.config.eos_id
    out = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
    assert error(again(pixels, ids).logits_per_image, out.logits_per_image) < TOLERANCE


def test_a_tokenizer_is_saved_with_its_pair(tmp_path):
    folder = tmp_path / "words"
    tiny_tokenizer().save_pretrained(folder)
    pair = load_pair(source("hf_clip_quickgelu"), tokenizer=folder)
    pair.save_pretrained(tmp_path / "saved")
    text = ["what color is this", "the cat"]
    assert torch.equal(load_pair(tmp_path / "saved").text.tokenizer(text), pair.text.tokenizer(text))
    with pytest.raises(ValueError, match="made from a function"):
        load_pair(source("hf_siglip"), tokenizer=letters(16)).save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_pair_that_transformers_has_no_class_for_is_not_saved(tmp_path):
    pair = load_pair(source("hf_siglip"))
    bias, pair.logit_bias = pair.logit_bias, None
    with pytest.raises(ValueError, match="a siglip pair needs a logit_bias"):
        pair.save_pretrained(tmp_path / "saved")
    pair.logit_bias = bias
    pair.text.model.config = replace(pair.text.config, causal=True)
    with pytest.raises(
        ValueError, match="transformers' siglip cannot express this text tower: causal True would become"
    ):
        pair.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_both_towers_and_the_logits_learn():
    pair = load_pair(source("bv_siglip")).train()
    assert isinstance(pair, Pair) and pair.logit_scale.ndim == 0
    pair(torch.randn(2, 3, 32, 32), torch.randint(0, 120, (2, 12))).logits_per_image.diag().sum().backward()
    assert all(weight.grad is not None for weight in pair.parameters())


@torch.inference_mode()
def test_half_precision_stays_near():
    ids, pixels = torch.randint(0, 200, (2, 16)), torch.randn(2, 3, 32, 32)
    exact = load_pair(source("hf_siglip"))(pixels, ids).logits_per_image
    half = load_pair(source("hf_siglip"), dtype=torch.bfloat16)(pixels, ids).logits_per_image
    assert half.dtype == torch.bfloat16 and error(half.float(), exact) < 0.1


def test_a_source_that_is_no_pair_is_refused(tmp_path):
    for name, reason in (("hf_dinov2", "no text tower"), ("hf_clip_vision_proj", "no text tower")):
        with pytest.raises(ValueError, match=reason):
            load_pair(source(name))
    folder = source("hf_siglip")
    state = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({key: value for key, value in state.items() if key != "logit_scale"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="without logit_scale, which makes no pair: use load_text"):
        load_pair(tmp_path)
    with pytest.raises(ValueError, match="format is 'timm'"):
        load_pair(folder, format="timm")
    with pytest.raises(ValueError, match="device"):
        load_pair(folder, device="nowhere")
