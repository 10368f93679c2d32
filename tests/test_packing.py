"""Images of any shape: packed in one sequence equals one by one; what becomes of pixels that fill no patch."""

import dataclasses

import pytest
import torch
from support.golden import golden_case
from support.models import make_image

import vlm_vision as vv
from vlm_vision.new_models import new_encoder

BASE = dict(image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=64)
KINDS = {
    "class token": dict(position_prefix=1),
    "registers": dict(position_prefix=1, num_registers=3, layer_scale=0.5, position_resize="bicubic_antialias"),
    "map": dict(class_token=False, pool="map", mlp="gelu_tanh", position_resize="bilinear_antialias"),
    "query": dict(class_token=False, pool="query", norm="rms", patch_norm=True, mlp="swiglu"),
    "rope": dict(position="rope2d", num_registers=2, key_bias=False, mask_token=True),
    "clip": dict(position_prefix=1, pre_norm=True, pool_head="linear", pool_dim=12, mlp="quick_gelu"),
}
SIZES = [(32, 32), (16, 56), (24, 8), (32, 32), (8, 24), (35, 33), (16, 56)]


def noisy(**fields) -> vv.Encoder:
    encoder = new_encoder(BASE | fields).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return encoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tap", [vv.Tap(), vv.Tap(-2, norm=False)])
@torch.inference_mode()
def test_packed_equals_one_by_one(kind, tap):
    encoder = noisy(**KINDS[kind])
    images = [torch.randn(3, *size) for size in SIZES]
    packed = encoder.packed(images, tap=tap)
    for one, seen in zip(images, packed, strict=True):
        alone = encoder(one[None], tap=tap)
        for name, value in vars(alone).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(getattr(seen, name), value, rtol=0, atol=1e-5)
            else:
                assert getattr(seen, name) == value


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_batches_seen_together_equal_each_alone(kind):
    encoder = noisy(**KINDS[kind] | {"mask_token": True})
    batches = [
        torch.randn(count, 3, *size) for count, size in zip((2, 1, 3), [(32, 32), (16, 56), (24, 8)], strict=True)
    ]
    mask = torch.rand(1, 14) < 0.5
    for masks in (None, [None, mask, None]):
        seen = encoder.together(batches, masks=masks)
        for out, batch, one in zip(seen, batches, masks or [None] * 3, strict=True):
            alone = encoder(batch, mask=one)
            assert out.grid == alone.grid
            for name, value in vars(alone).items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(getattr(out, name), value, rtol=0, atol=1e-5)


def test_gradients_of_packed_images_equal_those_one_by_one():
    encoder = noisy(**KINDS["map"])
    images = [torch.randn(3, *size) for size in SIZES]

    def gradients(outs) -> list[torch.Tensor]:
        encoder.zero_grad()
        sum(out.pooled.square().sum() for out in outs).backward()
        return [weight.grad.clone() for weight in encoder.parameters()]

    packed = gradients(encoder.packed(images))
    for one, other in zip(packed, gradients([encoder(one[None]) for one in images]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_stochastic_depth_drops_whole_images_of_a_pack():
    encoder = noisy(class_token=False, pool="none", drop_path=0.5).train()
    for block in encoder.model.blocks:
        block.residual1.drop_path = block.residual2.drop_path = 0.5
    images = [torch.randn(3, *size) for size in SIZES]
    still = [encoder.model.embed(one[None])[0] for one in images]
    tap = vv.Tap(0, norm=False)
    dropped, runs = 0, 60
    for _ in range(runs):
        for out, before in zip(encoder.packed(images, tap=tap), still, strict=True):
            same = (out.patch_tokens == before).all(dim=-1)
            assert same.all() or not same.any()  # both branches dropped for all of an image's patches, or for none
            dropped += bool(same.all())
    assert 0.17 < dropped / (runs * len(images)) < 0.33  # a quarter: four deviations


def test_nothing_packed_is_nothing_seen_and_bad_images_are_named(encoder):
    assert encoder.packed([]) == encoder.together([]) == []
    with pytest.raises(ValueError, match="smaller than one patch"):
        encoder.packed([torch.zeros(3, 4, 40)])
    with pytest.raises(ValueError, match="expected pixels of shape"):
        encoder.packed([torch.zeros(1, 32, 32)])


def test_pixels_of_whole_numbers_are_refused(encoder):
    batch = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for call, pixels in ((encoder, batch), (encoder.packed, [batch[0]]), (encoder.together, [batch])):
        with pytest.raises(
            ValueError, match="pixels are torch.uint8, expected floating point .*: pass the result of preprocess"
        ):
            call(pixels)


@torch.inference_mode()
def test_a_budget_of_tokens_keeps_the_aspect_ratio(encoder):
    spec = encoder.preprocess.with_budget(max_patches=24, patch_size=8)
    images = [make_image(0, 60, 20), make_image(1, 40, 40), make_image(2, 20, 100)]
    pixels = spec.each(images)
    for image, seen in zip(images, pixels, strict=True):
        rows, columns = encoder.grid(*seen.shape[-2:])
        assert rows * columns <= 24 < (rows + 2) * (columns + 2)
        assert 0.4 < (columns / rows) / (image.width / image.height) < 2.5
    assert [out.patch_tokens.shape[1] for out in encoder.packed(pixels)] == [
        encoder.num_patch_tokens(*seen.shape[-2:]) for seen in pixels
    ]


def with_remainder(encoder: vv.Encoder, policy: str) -> vv.Encoder:
    encoder.model.config = dataclasses.replace(encoder.config, remainder=policy)
    return encoder


@torch.inference_mode()
def test_pixels_that_fill_no_patch(encoder):
    pixels = torch.randn(1, 3, 35, 46)
    floor = encoder(pixels)
    assert floor.grid == (4, 5) and torch.equal(floor.patch_tokens, encoder(pixels[..., :32, :40]).patch_tokens)
    with pytest.raises(ValueError, match='choose remainder="floor"'):
        with_remainder(encoder, "error")(pixels)
    padded = with_remainder(encoder, "pad")(pixels)
    assert padded.grid == (5, 6) and encoder.num_patch_tokens(35, 46) == 30
    zeros = torch.nn.functional.pad(pixels, (0, 2, 0, 5))
    assert torch.equal(padded.patch_tokens, encoder(zeros).patch_tokens)
    assert torch.equal(encoder.packed([pixels[0]])[0].patch_tokens, padded.patch_tokens)


def test_load_takes_the_remainder_policy():
    encoder = vv.load(golden_case("hf_siglip_p14_cropped"), remainder="error")
    with pytest.raises(ValueError, match="no whole number of 14x14 patches"):
        encoder(torch.zeros(1, 3, 76, 76))
    with pytest.raises(ValueError, match="remainder is 'ceil', expected one of floor, error, pad"):
        vv.load(golden_case("hf_siglip"), remainder="ceil")
