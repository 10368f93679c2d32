"""Every run of every golden case that describes an encoder, in every format."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import golden as cases
from support.golden import TOLERANCE, case, error, golden_case, with_prefix

import vlm_vision as vv


@pytest.mark.parametrize("name", [*cases.ENCODERS, *cases.NAFLEX])
@torch.inference_mode()
def test_encoder_equals_its_reference_at_every_run(name):
    loaded = case(name)
    measure = cases.naflex_errors if name in cases.NAFLEX else cases.errors
    for run in loaded.about["runs"]:
        found = measure(loaded, run)
        assert len(found) >= 3 and max(found.values()) < TOLERANCE, (run, found)


MASKED = ["hf_dinov2", "hf_dinov2_reg", "hf_dinov2_swiglu", "dinov2_pth", "dinov3_pth"]


@pytest.mark.parametrize("name", MASKED)
@torch.inference_mode()
def test_masked_patches_equal_the_reference(name):
    loaded = case(name)
    golden = loaded.golden
    masks = [key for key in golden if key.startswith(("mask.", "bool_masked_pos."))]
    assert masks
    for key in masks:
        run = key.split(".")[1]
        out = loaded.encoder(golden[f"pixel_values.{run}"], mask=golden[key].bool())
        if f"masked_tokens.{run}" in golden:
            assert error(with_prefix(out), golden[f"masked_tokens.{run}"]) < TOLERANCE
        else:
            assert error(out.patch_tokens, golden[f"masked_patches.{run}"]) < TOLERANCE
            assert error(out.cls_token, golden[f"masked_cls.{run}"]) < TOLERANCE


@pytest.mark.parametrize("name", ["hf_llava_clip", "hf_llava_siglip_fp16"])
@torch.inference_mode()
def test_the_vision_part_of_llava_gives_the_features_of_llava(name):
    loaded = case(name)
    layer = loaded.about["arch"]["vision_feature_layer"]
    out = loaded.encoder(loaded.golden["pixel_values"], tap=vv.Tap(layer, norm=False))
    assert error(out.patch_tokens, loaded.golden["features"]) < TOLERANCE
    pooled = loaded.encoder(loaded.golden["pixel_values"]).pooled
    assert (pooled is None) == (name == "hf_llava_siglip_fp16")  # LLaVA drops that head


@torch.inference_mode()
def test_the_towers_of_openvla_give_its_features():
    folder = golden_case("openvla_fused_bf16")
    golden = load_file(folder / "golden.safetensors")
    encoder = vv.load(folder)
    assert isinstance(encoder, vv.FusedEncoder)
    out = encoder(golden["pixel_values"])
    assert error(out.patch_tokens, golden["patch_features"]) < TOLERANCE
    assert out.grid == tuple(json.loads((folder / "case.json").read_text())["arch"]["grid"])
