"""Image and text towers together: their references' embeddings and logits, and pictures against texts."""

import json

import golden as cases
import pytest
import torch
import torch.nn.functional as F
from conftest import picture
from golden import TOLERANCE, error
from safetensors.torch import load_file, save_file

from vlm_vision.pair import Pair, load_pair
from vlm_vision.tokenizer import TextTokenizer

CASES = [
    "hf_clip_quickgelu", "hf_clip_gelu_sharded", "hf_siglip", "open_clip_quickgelu", "open_clip_siglip", "bv_siglip",
    "bv_siglip2_scan", "hf_siglip2_naflex",
]  # fmt: skip


def source(shared, name):
    folder = shared / "golden" / name
    return folder / cases.FILES[name] if name in cases.FILES else folder


def letters(context_length):
    """A tokenizer of letters, for towers without one."""

    def pieces(texts):
        return [[ord(letter) % 90 for letter in text] for text in texts]

    return TextTokenizer(pieces, context_length=context_length, end=[1], pad_id=1)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_a_pair_equals_its_reference(shared, name):
    folder = shared / "golden" / name
    golden = {key.removesuffix(".native"): value for key, value in load_file(folder / "golden.safetensors").items()}
    pixels, ids = golden["pixel_values"], golden.get("input_ids")
    if ids is None:
        ids = torch.tensor(json.loads((folder / "case.json").read_text())["text_inputs"]["input_ids"])
    if name in cases.NAFLEX:
        pixels = cases.pictures(cases.case(shared, name), "native")
    pair = load_pair(source(shared, name))
    out = pair(pixels, ids)
    errors = {key: error(getattr(out, key), golden[key]) for key in ("image_embeds", "text_embeds")}
    if "logits_per_image" in golden:
        errors["logits_per_image"] = error(out.logits_per_image, golden["logits_per_image"])
    else:  # big_vision gives the loss of them
        signs = 2 * torch.eye(len(ids)) - 1
        loss = -F.logsigmoid(signs * out.logits_per_image).sum(dim=-1).mean()
        errors["sigmoid_loss"] = error(loss, golden["sigmoid_loss"])
        assert pair.logit_scale == golden["t"] and pair.logit_bias == golden["b"]
    assert max(errors.values()) < TOLERANCE, errors
    assert out.image_embeds.norm(dim=-1).sub(1).abs().max() < 1e-5


@torch.inference_mode()
def test_a_list_of_pictures_of_one_size_is_the_batch_of_them(shared):
    pair = load_pair(source(shared, "hf_siglip"))
    pixels, ids = torch.randn(3, 3, 32, 32), torch.randint(0, 200, (2, 16))
    assert error(pair(list(pixels), ids).logits_per_image, pair(pixels, ids).logits_per_image) < TOLERANCE


@pytest.mark.parametrize("name", ["hf_clip_quickgelu", "hf_siglip", "hf_siglip2_naflex"])
def test_pictures_are_compared_with_texts(shared, name):
    pair = load_pair(source(shared, name), tokenizer=letters(16))
    images, texts = [picture(0), picture(1, 30, 60)], ["a cat", "a dog", "two of them"]
    similarity, probabilities = pair.similarity(images, texts), pair.probabilities(images, texts)
    assert similarity.shape == probabilities.shape == (2, 3) and similarity.abs().max() <= 1 + 1e-6
    assert not similarity.requires_grad and (probabilities >= 0).all() and (probabilities <= 1).all()
    logits = pair.logit_scale.exp() * similarity
    if name == "hf_clip_quickgelu":
        assert torch.allclose(probabilities, logits.softmax(-1), atol=1e-6)
    else:
        assert torch.allclose(probabilities, (logits + pair.logit_bias).sigmoid(), atol=1e-6)
    assert pair.similarity(picture(0), "a cat").shape == (1, 1)


def test_both_towers_and_the_logits_learn(shared):
    pair = load_pair(source(shared, "bv_siglip")).train()
    assert isinstance(pair, Pair) and pair.logit_scale.ndim == 0
    pair(torch.randn(2, 3, 32, 32), torch.randint(0, 120, (2, 12))).logits_per_image.diag().sum().backward()
    assert all(weight.grad is not None for weight in pair.parameters())


@torch.inference_mode()
def test_half_precision_stays_near(shared):
    ids, pixels = torch.randint(0, 200, (2, 16)), torch.randn(2, 3, 32, 32)
    exact = load_pair(source(shared, "hf_siglip"))(pixels, ids).logits_per_image
    half = load_pair(source(shared, "hf_siglip"), dtype=torch.bfloat16)(pixels, ids).logits_per_image
    assert half.dtype == torch.bfloat16 and error(half.float(), exact) < 0.1


def test_a_source_that_is_no_pair_is_refused(shared, tmp_path):
    for name, reason in (("hf_dinov2", "no text tower"), ("hf_clip_vision_proj", "no text tower")):
        with pytest.raises(ValueError, match=reason):
            load_pair(source(shared, name))
    folder = source(shared, "hf_siglip")
    state = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({key: value for key, value in state.items() if key != "logit_scale"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="without logit_scale, no pair: use load_text"):
        load_pair(tmp_path)
    with pytest.raises(ValueError, match="format is 'timm'"):
        load_pair(folder, format="timm")
    with pytest.raises(ValueError, match="device"):
        load_pair(folder, device="nowhere")
