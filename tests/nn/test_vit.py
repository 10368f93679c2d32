"""The transformer itself: sizes, taps, positions, folding, masks. Parity with references is in test_golden."""

import dataclasses

import pytest
import torch

import vlm_vision as vv
from vlm_vision import presets
from vlm_vision.nn.position import RESIZE, sincos_2d
from vlm_vision.nn.rope import DINOV3, rotate

TINY = vv.ViTConfig(
    image_size=(32, 32),
    patch_size=8,
    embed_dim=32,
    depth=3,
    num_heads=4,
    mlp_dim=64,
    position_prefix=1,
    layer_scale=0.3,
)


def tiny(**changes) -> vv.VisionTransformer:
    model = vv.VisionTransformer(dataclasses.replace(TINY, **changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize(
    ("name", "changes", "millions", "patches"),
    [  # as published; the ViT papers count the 1000-class head
        ("vit_small_patch16_224", {"num_classes": 1000}, 22.05, 196),
        ("vit_base_patch16_224", {"num_classes": 1000}, 86.57, 196),
        ("vit_large_patch14_224", {"num_classes": 1000}, 304.20, 256),
        ("vit_huge_patch14_224", {"num_classes": 1000}, 632.05, 256),
        ("dinov2_small", {}, 22.06, 256),
        ("dinov2_large", {}, 304.37, 256),
        ("dinov2_giant", {}, 1136.48, 256),
        ("siglip_so400m_patch14_224", {}, 427.68, 256),
        ("siglip_base_patch16_224", {}, 92.88, 196),
    ],
)
def test_presets_have_the_published_sizes(name, changes, millions, patches):
    with torch.device("meta"):
        model = presets.create(name, **changes)
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert model.config.num_patch_tokens(224, 224) == patches


def test_unknown_preset_names_the_near_ones():
    with pytest.raises(ValueError, match="did you mean dinov2_large"):
        presets.create("dinov2_larg")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide embed_dim 32"),
        ({"depth": 0}, "depth is 0"),
        ({"image_size": (4, 4)}, "smaller than one patch of 8 pixels"),
        ({"mlp": "gelu_tan"}, "did you mean 'gelu_tanh'"),
        ({"position_resize": "bicubik"}, "did you mean 'bicubic'"),
        (
            {"position": "rope"},
            "position is 'rope', expected one of learned, sincos2d, axes, none, rope2d; did you mean 'rope2d'",
        ),
        ({"norm": "rmsnorm"}, "norm is 'rmsnorm', expected one of layer, rms"),
        ({"pool_head": "mlp"}, "pool_head is 'mlp', expected one of none, linear, tanh"),
        ({"class_token": False, "position_prefix": 0}, "pool 'cls' needs class_token"),
        ({"position": "rope2d", "num_heads": 16}, "head width that 4 divides"),
    ],
)
def test_an_impossible_configuration_says_what_is_wrong(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TINY, **change)


def test_a_tap_runs_no_block_past_it_and_pools_only_at_the_end():
    model, ran = tiny(), []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    out = model(torch.randn(1, 3, 32, 32), tap=vv.Tap(-2))
    assert ran == [0, 1] and out.pooled is None
    assert model(torch.randn(1, 3, 32, 32)).pooled is not None


@pytest.mark.parametrize("layer", [3, -4])
def test_a_tap_outside_the_depth_is_refused(layer):
    with pytest.raises(ValueError, match=f"Tap\\(layer={layer}\\) is outside this encoder of 3 blocks: use -3 to 2"):
        tiny()(torch.randn(1, 3, 32, 32), tap=vv.Tap(layer))


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_pooled_does_not_depend_on_the_norm_of_the_tap(pool):
    model, pixels = tiny(pool=pool), torch.randn(2, 3, 40, 24)
    normed, raw = model(pixels), model(pixels, tap=vv.Tap(-1, norm=False))
    torch.testing.assert_close(normed.pooled, raw.pooled)
    assert not torch.allclose(normed.patch_tokens, raw.patch_tokens)


def test_patch_tokens_hold_no_prefix_token():
    model = tiny(num_registers=4)
    out = model(torch.randn(2, 3, 24, 48))
    assert out.grid == (3, 6) and out.patch_tokens.shape == (2, 18, 32)
    assert out.cls_token.shape == (2, 32) and out.register_tokens.shape == (2, 4, 32)


def test_without_pooling_the_tokens_are_the_same():
    model, pixels = tiny(num_classes=5), torch.randn(2, 3, 32, 32)
    out = model(pixels, pool=False)
    assert out.pooled is None and out.logits is None
    assert torch.equal(out.patch_tokens, model(pixels).patch_tokens)
    assert model(pixels).logits.shape == (2, 5)


@torch.inference_mode()
def test_folding_layer_scale_keeps_the_outputs():
    model, pixels = tiny(), torch.randn(2, 3, 32, 32)
    before = model(pixels)
    model.fold_layer_scale()
    assert not any("scale" in name for name, _ in model.named_parameters()) and model.config.layer_scale is None
    torch.testing.assert_close(model(pixels).patch_tokens, before.patch_tokens, rtol=0, atol=3e-6)


def test_the_cache_of_resized_positions_follows_the_table():
    model, pixels = tiny(), torch.randn(1, 3, 48, 24)
    with torch.no_grad():
        first = model(pixels).patch_tokens
        assert torch.equal(model(pixels).patch_tokens, first)
        model.position.table.mul_(2)
        second = model(pixels).patch_tokens
    assert not torch.allclose(first, second)
    torch.testing.assert_close(model(pixels).patch_tokens, second)  # with gradients nothing is cached


def test_gradients_reach_the_position_table_through_the_resize():
    model = tiny()
    model(torch.randn(1, 3, 48, 24)).patch_tokens.sum().backward()
    assert model.position.table.grad.abs().sum() > 0


def test_gradient_checkpointing_gives_the_same_gradients():
    pixels, gradients = torch.randn(2, 3, 32, 32), []
    model = tiny().train()
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(pixels).pooled.square().sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_key_bias_that_is_not_there_stays_zero_in_training():
    model = tiny(key_bias=False)
    model(torch.randn(2, 3, 32, 32)).pooled.square().sum().backward()
    query, key, value = model.blocks[0].attn.qkv.bias.grad.chunk(3)
    assert key.abs().max() == 0 and query.abs().max() > 0 and value.abs().max() > 0


def test_drop_path_drops_whole_residuals_and_only_in_training():
    model, pixels = tiny(drop_path=0.99, depth=2), torch.randn(64, 3, 32, 32)
    kept = model(pixels).patch_tokens
    assert torch.equal(model(pixels).patch_tokens, kept)
    assert not torch.allclose(model.train()(pixels).patch_tokens, kept)
    assert model.blocks[0].residual1.drop_path == 0 and model.blocks[1].residual2.drop_path == pytest.approx(0.99)


def test_masked_patches_do_not_show_through():
    model = tiny(mask_token=True)
    pixels, mask = torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    other = pixels.clone()
    other[:, :, 8:16, 8:16] = 7.0  # patch 5 of the 4x4 grid
    assert torch.equal(model(pixels, mask=mask).patch_tokens, model(other, mask=mask).patch_tokens)
    with pytest.raises(ValueError, match="bool mask of shape"):
        model(pixels, mask=mask[:, :3])
    with pytest.raises(ValueError, match="no mask token"):
        tiny()(pixels, mask=mask)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32)])
def test_pixels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="expected pixels of shape"):
        tiny()(torch.randn(shape))


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="7x32 pixels is smaller than one patch of 8x8"):
        tiny()(torch.randn(1, 3, 7, 32))


def test_rotary_attention_depends_on_the_difference_of_positions_alone():
    cos, sin = DINOV3.angles((1, 9), 16)
    q, k = torch.randn(2, 1, 1, 1, 16).expand(2, 1, 1, 9, 16)
    products = rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2)
    for shift in range(1, 9):
        diagonal = products[0, 0].diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


def test_rotary_angles_leave_prefix_tokens_alone():
    x = torch.randn(1, 2, 5 + 6, 16)
    turned = rotate(x, *DINOV3.angles((2, 3), 16))
    assert torch.equal(turned[:, :, :5], x[:, :, :5]) and not torch.allclose(turned[:, :, 5:], x[:, :, 5:])


def test_a_rotary_encoder_takes_any_grid():
    model = tiny(position="rope2d", position_prefix=0)
    assert model(torch.randn(1, 3, 24, 56)).patch_tokens.shape == (1, 21, 32)


def test_fixed_positions_are_built_and_do_not_train():
    model = vv.VisionTransformer(dataclasses.replace(TINY, position="sincos2d"))
    torch.testing.assert_close(model.position.table[0, 1:], sincos_2d((4, 4), 32))
    assert not model.position.table.requires_grad and not model.position.table[0, 0].any()


@pytest.mark.parametrize("rule", sorted(set(RESIZE) - {"native", "recompute", "bilinear_zeros_transposed"}))
def test_every_resize_keeps_a_constant_table(rule):
    table = torch.full((1, 2, 5, 5), 3.0)
    torch.testing.assert_close(RESIZE[rule](table, (7, 3)), torch.full((1, 2, 7, 3), 3.0))


@pytest.mark.parametrize("options", [{"mlp": "swiglu"}, {"norm": "rms"}, {"pool": "map", "num_registers": 2}])
def test_it_compiles_in_one_graph(options):
    model, pixels = tiny(**options), torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(pixels).patch_tokens, model(pixels).patch_tokens)


@pytest.mark.parametrize("mlp", ["gelu", "gelu_tanh", "quick_gelu", "swiglu"])
def test_outputs_with_and_without_gradients_are_the_same_and_hooks_see_what_they_hook(mlp):
    model, pixels, seen = tiny(mlp=mlp), torch.randn(2, 3, 32, 32), []
    expected = model(pixels).patch_tokens
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).patch_tokens, expected, rtol=0, atol=3e-6)
    fc1 = model.blocks[0].mlp.fc1
    fc1.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        model(pixels)
    torch.testing.assert_close(seen[0][1], torch.nn.functional.linear(seen[0][0], fc1.weight, fc1.bias))


@pytest.mark.parametrize(
    ("changes", "empty"),
    [
        ({"pool": "cls"}, True),
        ({"pool": "cls", "num_registers": 2, "num_classes": 5, "drop_path": 0.5}, True),
        ({"pool": "none", "position": "rope2d", "layer_scale": None}, True),
        ({"pool": "cls", "num_classes": 5, "class_input": "cls_mean"}, False),
        ({"pool": "map"}, False),
        ({"pool": "map", "class_token": False, "position_prefix": 0}, False),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_patch_tokens_the_rest_and_its_gradients_are_the_same(changes, empty, checkpointing):
    model = tiny(**changes).train().double()
    model.gradient_checkpointing = checkpointing
    pixels, seen, gradients, rows = torch.randn(3, 3, 32, 40, dtype=torch.float64), [], [], []
    model.blocks[-1].mlp.fc1.register_forward_hook(lambda module, given, made: rows.append(made.shape[1]))
    for patches in (True, False):
        torch.manual_seed(1)
        out = model(pixels, patches=patches)
        told = (out.cls_token, out.register_tokens, out.pooled, out.logits)
        seen.append(torch.cat([one.flatten() for one in told if one is not None]))
        model.zero_grad()
        seen[-1].square().sum().backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert out.patch_tokens.shape == (3, 0, 32) and out.grid == (4, 5)
    assert (rows[-1] == model.config.num_prefix_tokens) is empty
    torch.testing.assert_close(*seen)
    torch.testing.assert_close(*gradients)
