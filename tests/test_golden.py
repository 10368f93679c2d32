"""Every run of every golden case that describes an encoder in a HuggingFace folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlm_vision as vv
from vlm_vision.encoder import Encoder

ENCODERS = [
    "hf_vit", "hf_vit_cls", "hf_clip_quickgelu", "hf_clip_gelu_sharded", "hf_clip_vision_proj", "hf_siglip",
    "hf_siglip_p14_cropped", "hf_dinov2", "hf_dinov2_reg", "hf_dinov2_swiglu",
]  # fmt: skip
TOLERANCE = 1e-5  # of the output's scale; the references' own fp32 noise is below 2e-6


def error(ours: torch.Tensor, golden: torch.Tensor) -> float:
    assert ours.shape == golden.shape
    return ((ours - golden).abs().max() / golden.abs().max()).item()


def case(folder: Path) -> tuple[dict, dict[str, torch.Tensor], Encoder]:
    encoder = vv.load(folder)
    assert isinstance(encoder, Encoder)
    return json.loads((folder / "case.json").read_text()), load_file(folder / "golden.safetensors"), encoder


def with_prefix(out: vv.VisionOutput) -> torch.Tensor:
    prefix = [out.cls_token[:, None]] if out.cls_token is not None else []
    prefix += [out.register_tokens] if out.register_tokens is not None else []
    return torch.cat([*prefix, out.patch_tokens], dim=1)


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_encoder_equals_its_reference_at_every_run(shared, name):
    about, golden, encoder = case(shared / "golden" / name)
    tokens_are_normed = "NO final norm" not in about["outputs"]["tokens"]
    for run, size in about["runs"].items():
        pixels = golden[f"pixel_values.{run}"]
        out = encoder(pixels, tap=vv.Tap(-1, norm=tokens_are_normed))
        assert out.grid == tuple(size["grid"])
        assert encoder.num_patch_tokens(*pixels.shape[-2:]) == out.patch_tokens.shape[1]
        errors = {
            "embed": error(encoder.model.embed(pixels)[0], golden[f"embed.{run}"]),
            "block": error(with_prefix(encoder(pixels, tap=vv.Tap(-2, norm=False))), golden[f"block.{run}"]),
            "tokens": error(with_prefix(out), golden[f"tokens.{run}"]),
        }
        pooled = golden.get(f"image_features.{run}", golden.get(f"pooled.{run}"))
        if pooled is not None:
            errors["pooled"] = error(out.pooled, pooled)
        if f"logits.{run}" in golden:
            errors["logits"] = error(out.logits, golden[f"logits.{run}"])
        assert max(errors.values()) < TOLERANCE, (run, errors)


@pytest.mark.parametrize("name", ["hf_dinov2", "hf_dinov2_reg", "hf_dinov2_swiglu"])
@torch.inference_mode()
def test_masked_patches_equal_the_reference(shared, name):
    _, golden, encoder = case(shared / "golden" / name)
    out = encoder(golden["pixel_values.native"], mask=golden["bool_masked_pos.native"].bool())
    assert error(with_prefix(out), golden["masked_tokens.native"]) < TOLERANCE


@pytest.mark.parametrize("name", ["hf_llava_clip", "hf_llava_siglip_fp16"])
@torch.inference_mode()
def test_the_vision_part_of_llava_gives_the_features_of_llava(shared, name):
    about, golden, encoder = case(shared / "golden" / name)
    layer = about["arch"]["vision_feature_layer"]
    out = encoder(golden["pixel_values"], tap=vv.Tap(layer, norm=False))
    assert error(out.patch_tokens, golden["features"]) < TOLERANCE
    assert (encoder(golden["pixel_values"]).pooled is None) == (name == "hf_llava_siglip_fp16")  # LLaVA drops that head
