"""Towers side by side on one grid."""

import dataclasses

import pytest
import torch
from support.golden import golden_case
from support.models import make_image

import vlm_vision as vv


@pytest.fixture
def pair() -> str:
    return f"{golden_case('hf_dinov2_reg')} + {golden_case('hf_siglip')}"


@torch.inference_mode()
def test_fused_tokens_are_the_towers_own():
    dino = vv.load(golden_case("hf_dinov2_reg"), tap=vv.Tap(-2, norm=False), image_size=42)
    siglip = vv.load(golden_case("hf_siglip"), image_size=48)
    fused = vv.FusedEncoder([dino, siglip])
    pixels = fused.preprocess([make_image(0), make_image(1)])
    assert pixels.shape == (2, 6, 48, 48) and fused.preprocess.output_size == (48, 48)
    assert fused.num_patch_tokens(48, 48) == 36 and fused.embed_dim == 96
    out = fused(pixels)
    own = [tower(tower.preprocess([make_image(0), make_image(1)])) for tower in (dino, siglip)]
    assert out.grid == (6, 6)
    assert torch.equal(out.patch_tokens, torch.cat([one.patch_tokens for one in own], dim=-1))
    assert out.cls_token is None and out.register_tokens is None and out.pooled is None
    each = [tower.preprocess([make_image(0), make_image(1)]) for tower in (dino, siglip)]
    assert torch.equal(fused(each).patch_tokens, out.patch_tokens)
    both = fused(pixels, tap=vv.Tap())
    assert both.pooled.shape == (2, 96)


def test_grids_that_differ_are_refused_with_both_named(pair):
    with pytest.raises(ValueError, match=r"dinov2_with_registers at 224x224 px, patch 7: grid 32x32; siglip.*grid 4x4"):
        vv.load(pair)
    fused = vv.load(f"{pair.split(' + ')[1]} + {pair.split(' + ')[1]}", tap=[vv.Tap(-1), vv.Tap(-2)])
    assert isinstance(fused, vv.FusedEncoder) and fused.tap == (vv.Tap(-1), vv.Tap(-2))


def test_a_canvas_of_another_size_is_refused_where_patches_differ():
    fused = vv.FusedEncoder(
        [vv.load(golden_case("hf_dinov2_reg"), image_size=42), vv.load(golden_case("hf_siglip"), image_size=48)]
    )
    with pytest.raises(ValueError, match=r"share one canvas only at \(48, 48\), got \(56, 56\)"):
        fused(torch.zeros(1, 6, 56, 56))
    with pytest.raises(ValueError, match=r"shape \(batch, 6, height, width\)"):
        fused(torch.zeros(1, 3, 48, 48))
    with pytest.raises(ValueError, match="fused towers must have one grid"):
        fused([torch.zeros(1, 3, 42, 42), torch.zeros(1, 3, 32, 32)])
    with pytest.raises(ValueError, match="2 towers, got 2 pixel tensors and 3 taps"):
        fused(torch.zeros(1, 6, 48, 48), tap=[vv.Tap()] * 3)


@torch.inference_mode()
def test_a_saved_pair_loads_as_it_was(tmp_path):
    fused = vv.FusedEncoder(
        [
            vv.load(golden_case("hf_dinov2_reg"), tap=vv.Tap(-2, norm=False), image_size=42),
            vv.load(golden_case("hf_siglip"), image_size=48),
        ]
    )
    fused.save_pretrained(tmp_path / "pair")
    again = vv.load(tmp_path / "pair")
    pixels = fused.preprocess(make_image())
    assert isinstance(again, vv.FusedEncoder) and again.tap == fused.tap
    assert torch.equal(again(pixels).patch_tokens, fused(pixels).patch_tokens)


def test_equal_patches_share_a_canvas_of_any_size(encoder):
    other = vv.Encoder(
        vv.VisionTransformer(dataclasses.replace(encoder.config, embed_dim=16)),
        preprocess=encoder.preprocess,
        origin=encoder.origin,
    )
    fused = vv.FusedEncoder([encoder, other])
    assert fused(torch.zeros(1, 6, 24, 40)).patch_tokens.shape == (1, 15, 48)


def test_towers_whose_images_may_have_any_size_are_not_fused(encoder):
    free = dataclasses.replace(encoder.preprocess, resize="shortest_edge", resize_to=(32, 32))
    loose = vv.Encoder(encoder.model, preprocess=free, origin=encoder.origin)
    with pytest.raises(ValueError, match="gives images of any size"):
        vv.FusedEncoder([encoder, loose])


def test_each_tower_can_have_its_own_image_size():
    fused = vv.load(f"{golden_case('hf_dinov2_reg')} + {golden_case('hf_siglip')}", image_size=[42, 48])
    assert fused.grid(48, 48) == (6, 6)
    with pytest.raises(ValueError, match="2 towers and 3 image sizes"):
        vv.load(f"{golden_case('hf_dinov2_reg')} + {golden_case('hf_siglip')}", image_size=[42, 48, 56])


def clips(encoder: vv.Encoder, **fields) -> vv.Encoder:
    tokens = dict(pool="none", class_token=False, num_registers=0, position_prefix=0)
    config = dataclasses.replace(encoder.config, frames="joined", **tokens, **fields)
    return vv.Encoder(vv.VisionTransformer(config).eval(), preprocess=encoder.preprocess, origin=encoder.origin)


def test_towers_of_videos_are_fused_frame_by_frame(encoder):
    fused = vv.FusedEncoder([clips(encoder), clips(encoder, temporal_patch=2)])
    out = fused([torch.randn(1, 2, 3, 16, 24), torch.randn(1, 4, 3, 16, 24)])
    assert out.frames == 2 and out.patch_tokens.shape[1] == out.frames * out.grid[0] * out.grid[1]
    with pytest.raises(ValueError, match=r"one number of frames of tokens, got \[4, 2\]"):
        fused([torch.randn(1, 4, 3, 16, 24), torch.randn(1, 4, 3, 16, 24)])


def test_one_tower_is_no_fusion(encoder):
    with pytest.raises(ValueError, match="at least two towers, got 1"):
        vv.FusedEncoder([encoder])
