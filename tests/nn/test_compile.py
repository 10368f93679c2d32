"""torch.compile makes one graph of a forward, and a second one for all other sizes together."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import vlm_vision as vv
from vlm_vision.new_models import new_encoder
from vlm_vision.nn import position

TINY = dict(image_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=4, mlp_dim=48)
FAMILIES = {
    "dinov2": dict(position_prefix=1, layer_scale=0.5),
    "dinov2_original": dict(position_prefix=1, layer_scale=0.5, position_resize="bicubic_offset"),
    "swiglu": dict(position_prefix=1, num_registers=2, position_resize="bicubic_antialias", mlp="swiglu", norm="rms"),
    "dinov3": dict(num_registers=2, position="rope2d", key_bias=False, layer_scale=0.5),
    "siglip": dict(class_token=False, pool="map", mlp="gelu_tanh"),
}
SIZES = [(32, 32), (40, 24), (24, 56), (32, 48), (16, 32), (32, 32)]  # larger, smaller, one side native


def tower(**fields) -> vv.Encoder:
    encoder = new_encoder(TINY | fields).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return encoder


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_and_one_more_for_all_other_sizes(family, without_gradients):
    encoder, graphs = tower(**FAMILIES[family]), CompileCounterWithBackend("eager")
    compiled = torch.compile(encoder.model, fullgraph=True, backend=graphs)
    counts = []
    for height, width in SIZES:
        pixels = torch.randn(2, 3, height, width)
        with without_gradients():
            ours, theirs = compiled(pixels), encoder(pixels)
        torch.testing.assert_close(ours.patch_tokens, theirs.patch_tokens, rtol=0, atol=2e-5)
        torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=0, atol=2e-5)
        counts.append(graphs.frame_count)
    assert counts == [1] + [2] * (len(SIZES) - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_gradients_are_the_same_at_every_size(family):
    own_backward = family in ("dinov2_original", "swiglu")  # of the resize; tracing the backward takes seconds
    encoder, graphs = tower(**FAMILIES[family]), CompileCounterWithBackend("aot_eager" if own_backward else "eager")
    compiled = torch.compile(encoder.model, fullgraph=True, backend=graphs)
    for size in SIZES[:3]:
        pixels, gradients = torch.randn(2, 3, *size), []
        for model in (compiled, encoder.model):
            encoder.zero_grad()
            model(pixels).pooled.square().sum().backward()
            gradients.append([weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert graphs.frame_count == 2


@pytest.mark.parametrize(("family", "backend"), [("dinov2", "eager"), ("dinov3", "aot_eager")])
def test_dropped_patches_compile_in_training(family, backend):
    encoder = tower(**FAMILIES[family], patch_drop=0.5, drop_path=0.5).train()
    graphs = CompileCounterWithBackend(backend)
    compiled = torch.compile(encoder.model, fullgraph=True, backend=graphs)
    for height, width in SIZES[:3]:
        out = compiled(torch.randn(2, 3, height, width))
        kept = round(height * width / 64 * 0.5)
        assert out.kept.shape == (2, kept) and out.patch_tokens.shape == (2, kept, 32)
        out.patch_tokens.square().sum().backward()
    assert graphs.frame_count == 2 and encoder.model.patch_embed.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("grid", [(5, 7), (2, 3), (5, 16)])
@pytest.mark.parametrize("rule", ["bicubic_antialias", "bilinear_antialias", "bicubic_offset", "bilinear_offset"])
def test_a_resize_is_the_same_compiled(rule, grid):
    table = torch.randn(1, 4, 5, 7)
    compiled = torch.compile(position.RESIZE[rule], fullgraph=True, backend="eager", dynamic=True)
    torch.testing.assert_close(compiled(table, grid), position.RESIZE[rule](table, grid), rtol=0, atol=2e-5)


def test_towers_side_by_side_compile():
    fused = vv.FusedEncoder([tower(**FAMILIES["dinov2"]), tower(**FAMILIES["siglip"])]).eval()
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    pixels = torch.randn(2, 6, 40, 24)
    with torch.no_grad():
        ours, theirs = compiled(pixels).patch_tokens, fused(pixels).patch_tokens
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_inductor_gives_the_same():
    encoder = tower(**FAMILIES["swiglu"])
    compiled = torch.compile(encoder.model, fullgraph=True)
    with torch.inference_mode():
        for size in SIZES[:3]:
            pixels = torch.randn(2, 3, *size)
            ours, theirs = compiled(pixels).patch_tokens, encoder(pixels).patch_tokens
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
