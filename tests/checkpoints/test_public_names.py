"""Models that transformers saves under the names of their public files, which are not those of its modules."""

import warnings
from operator import attrgetter

import pytest
import torch
from support.census.build import stir, tiny_config
from support.census.cases import CASES
from support.census.radio import radio
from transformers import AutoModelForImageTextToText, RadioConfig, RadioModel

import vlm_vision as vv


@pytest.mark.parametrize(
    "name", ["qianfan_ocr", "kimi_k25", "minimax_m3_vl, two heads", "step3p7, wide", "mistral_large4"]
)
@torch.inference_mode()
def test_public_names_are_read(name, tmp_path):
    case = CASES[name]
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(tiny_config(case.model_type, case.changes))
    stir(whole)
    inner = whole.eval().model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole.save_pretrained(tmp_path)
    encoder, projector = vv.load(tmp_path), vv.load_projector(tmp_path)
    x = torch.randn(2, 3, 64, 112)
    out, expected = encoder(x), case.reference(attrgetter(case.tower)(inner), x).tokens
    torch.testing.assert_close(out.patch_tokens, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert case.connector is not None
    projected, wanted = projector(out.patch_tokens, out.grid), case.connector(inner, out.patch_tokens, out.grid)
    torch.testing.assert_close(projected, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.fixture
def tower() -> RadioModel:
    torch.manual_seed(0)
    model = RadioModel(
        RadioConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, patch_size=8, image_size=64, max_img_size=96,
            num_cls_tokens=2, num_registers=3, summary_idxs=[1, 0], norm_mean=[0.4, 0.5, 0.6], norm_std=[0.2, 0.3, 0.4],
        )
    )  # fmt: skip
    statistics = {name: value.clone() for name, value in model.input_conditioner.state_dict().items()}
    stir(model)
    model.input_conditioner.load_state_dict(statistics)
    return model.eval()


@torch.inference_mode()
def test_radio_pools_its_class_tokens_and_normalizes_in_its_preprocessing(tower, tmp_path):
    tower.save_pretrained(tmp_path / "bare")
    encoder = vv.load(tmp_path / "bare")
    assert (encoder.preprocess.mean, encoder.preprocess.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    image = (torch.rand(48, 64, 3) * 255).to(torch.uint8).numpy()
    pixels = encoder.preprocess(image)
    expected = tower(pixels * tower.input_conditioner.norm_std + tower.input_conditioner.norm_mean)
    out = encoder(pixels)
    torch.testing.assert_close(out.patch_tokens, expected.features, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.pooled, expected.summary, rtol=0, atol=1e-5)
    assert out.register_tokens.shape == (1, 4, 32)

    encoder.save_pretrained(tmp_path / "written", format="hf")
    again, theirs = vv.load(tmp_path / "written"), RadioModel.from_pretrained(tmp_path / "written")
    assert again.preprocess == encoder.preprocess and again.config == encoder.config
    torch.testing.assert_close(radio(theirs, pixels).tokens, expected.features, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs(pixels).summary, tower(pixels).summary, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_public_files_of_radio_have_no_layer_scale(tower, tmp_path):
    for block in tower.encoder.layer:
        for scale in (block.layer_scale1, block.layer_scale2):
            scale.lambda1.fill_(1.0)
    state = {name: weight for name, weight in tower.state_dict().items() if "layer_scale" not in name}
    tower.save_pretrained(tmp_path, state_dict=state)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(vv.load(tmp_path)(x).patch_tokens, radio(tower, x).tokens, rtol=0, atol=1e-5)
