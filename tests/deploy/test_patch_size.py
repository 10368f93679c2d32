"""Another patch size: laws of the pseudo-inverse resize, and what becomes of grid, table and preprocessing."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from support.models import make_image

import vlm_vision as vv
from vlm_vision.deploy.patch_size import resize_patch_embedding, with_patch_size
from vlm_vision.new_models import new_encoder


def resized(patches: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(patches, size=(side, side), mode="bicubic", antialias=True, align_corners=False)


@pytest.mark.parametrize(("old", "new"), [(8, 16), (14, 16), (4, 12), (7, 8)])
def test_larger_patches_give_the_very_same_products(old, new):
    weight, patches = torch.randn(6, 3, old, old), torch.randn(20, 3, old, old)
    products = F.conv2d(resized(patches, new), resize_patch_embedding(weight, (new, new)))
    torch.testing.assert_close(products, F.conv2d(patches, weight), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(16, 8), (16, 14), (32, 14)])
def test_smaller_patches_give_the_least_squares_products(old, new):
    """The error's gradient, (w - w' B) B^T over white noise, is zero."""
    weight = torch.randn(6, 1, old, old, dtype=torch.float64)
    units = torch.eye(old * old, dtype=torch.float64).unflatten(1, (1, old, old))
    matrix = resized(units, new).flatten(1).T
    error = weight.flatten(1) - resize_patch_embedding(weight, (new, new)).flatten(1) @ matrix
    assert error.abs().max() > 0.1  # detail is lost
    torch.testing.assert_close(error @ matrix.T, torch.zeros(6, new * new, dtype=torch.float64), rtol=0, atol=1e-9)


@torch.no_grad()
def test_an_encoder_of_larger_patches_sees_the_enlarged_image_as_before(encoder):
    large = with_patch_size(encoder, 12)
    assert large.config.image_size == (48, 48) and large.config.grid == encoder.config.grid == (4, 4)
    assert large.preprocess.output_size == (48, 48) and large(large.preprocess(make_image())).grid == (4, 4)
    pixels = torch.randn(2, 3, 40, 24)
    patches = resized(rearrange(pixels, "b c (h p) (w q) -> (b h w) c p q", p=8, q=8), 12)
    enlarged = rearrange(patches, "(b h w) c p q -> b c (h p) (w q)", h=5, w=3)
    ours, theirs = large(enlarged), encoder(pixels)
    torch.testing.assert_close(ours.patch_tokens, theirs.patch_tokens, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=0, atol=1e-4)


def test_the_given_encoder_stays_as_it_is(encoder):
    before = copy.deepcopy(encoder.state_dict())
    config, preprocess = encoder.config, encoder.preprocess
    made = with_patch_size(encoder, 4)
    assert made.model.patch_embed.weight.shape == (32, 3, 4, 4) and made.model.patch_embed.stride == (4, 4)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert encoder.config is config and encoder.preprocess is preprocess
    assert all(weight.requires_grad for weight in made.parameters()) and not made.training


@torch.no_grad()
def test_another_image_size_resizes_the_table_by_the_encoders_rule(encoder):
    made = with_patch_size(encoder, 4, image_size=(32, 24))
    assert made.config.grid == (8, 6) and made.preprocess.output_size == (32, 24)
    for ours, theirs in zip(made.model.position((8, 6)), encoder.model.position((8, 6)), strict=True):
        assert torch.equal(ours, theirs)
    again = vv.Encoder.from_dict(made.to_dict())
    again.load_state_dict(made.state_dict())
    pixels = made.preprocess(make_image())
    assert torch.equal(again.eval()(pixels).patch_tokens, made(pixels).patch_tokens)


def test_rotary_encoders_have_no_table_to_resize():
    fields = dict(image_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=4, mlp_dim=32, position="rope2d")
    made = with_patch_size(new_encoder(fields), 16, image_size=96)
    assert made.config.grid == (6, 6) and made(torch.zeros(1, 3, 96, 64)).grid == (6, 4)


def test_preprocessing_keeps_the_number_of_patches(encoder):
    half = dataclasses.replace(encoder.preprocess, resize_to=(16, 24))
    free = dataclasses.replace(encoder.preprocess, resize="shortest_edge", resize_to=(32, 32))
    budget = encoder.preprocess.with_budget(20, 8)
    for preprocess, expected in [(half, half.at(32, 48)), (free, free), (budget, budget.with_budget(20, 16))]:
        encoder.preprocess = preprocess
        assert with_patch_size(encoder, 16).preprocess == expected


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [
        dict(resize="area", resize_to=(32 * 32, 256 * 256), patch_size=16),
        dict(resize="near_area", resize_to=(64, 64), patch_size=16),
        dict(resize="within_patches", resize_to=(90, 90), patch_size=8),
        dict(resize="fill_patches", resize_to=(0, 0), patch_size=16, max_patches=20),
        dict(resize="shrunk_patches", resize_to=(96, 96), patch_size=8, max_patches=64, multiple=16),
    ],
)
def test_preprocessing_makes_whole_patches_of_the_new_size(encoder, fields):
    encoder.preprocess = dataclasses.replace(encoder.preprocess, **fields)
    made = with_patch_size(encoder, 12)
    assert made.preprocess.patch_size == fields["patch_size"] // 8 * 12
    height, width = made.preprocess(make_image(0, 70, 130)).shape[-2:]
    square = made.preprocess.multiple or made.preprocess.patch_size
    assert height % square == 0 == width % square
    with pytest.raises(ValueError, match="patch_size 20, which is no whole number of patches of 8 pixels"):
        encoder.preprocess = dataclasses.replace(encoder.preprocess, patch_size=20)
        with_patch_size(encoder, 12)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"patch_size": 0}, "patch_size is 0: it must be a whole number of at least 1"),
        ({"patch_size": 2.5}, "patch_size is 2.5: it must be a whole number"),
        ({"patch_size": 16, "image_size": 8}, "smaller than one patch of 16 pixels"),
        ({"patch_size": 16, "image_size": "48"}, "expected \\(height, width\\) in pixels"),
    ],
)
def test_impossible_sizes_are_refused(encoder, options, says):
    with pytest.raises(ValueError, match=says):
        with_patch_size(encoder, **options)


def test_several_towers_are_refused(encoder):
    with pytest.raises(ValueError, match="takes one tower, got FusedEncoder"):
        with_patch_size(vv.FusedEncoder([encoder, encoder]), 16)


@torch.no_grad()
@pytest.mark.parametrize("rule", ["bicubic_offset_always", "bicubic_offset_unequal"])
def test_a_rule_that_moves_the_native_table_is_applied_once(encoder, rule):
    encoder.model.position.resize = rule
    made = with_patch_size(encoder, 4, image_size=(32, 24))
    expected = torch.cat(encoder.model.position((8, 6)), dim=1)
    assert torch.equal(torch.cat(made.model.position((8, 6), (32, 24)), dim=1), expected)
