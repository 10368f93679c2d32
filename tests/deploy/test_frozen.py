"""An encoder frozen to one size gives what the encoder gives there, eager and exported; CUDA graphs do too."""

import copy
import importlib.util
from types import SimpleNamespace

import pytest
import torch

import vlm_vision as vv
from vlm_vision.deploy.cpu_layout import pack_for_cpu
from vlm_vision.deploy.cuda_graph import CudaGraph
from vlm_vision.deploy.export import export_onnx, export_program, freeze
from vlm_vision.new_models import new_encoder

TINY = dict(image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_dim=48)
FAMILIES = {
    "dinov2": dict(position_prefix=1, layer_scale=0.5, mask_token=True, position_resize="bicubic_offset"),
    "registers": dict(position_prefix=1, num_registers=2, position_resize="bicubic_antialias", num_classes=3),
    "rope": dict(num_registers=2, position="rope2d", key_bias=False, layer_scale=0.5, mlp="swiglu"),
    "siglip": dict(class_token=False, pool="map", mlp="gelu_tanh"),
    "clip": dict(position_prefix=1, mlp="quick_gelu", pre_norm=True, pool_head="linear", pool_dim=8),
    "aimv2": dict(class_token=False, position="sincos2d", position_resize="recompute", pool="query", norm="rms"),
    "padded": dict(class_token=False, pool="mean", remainder="pad", patch_drop=0.5, drop_path=0.5),
}
SIZES = [(32, 32), (44, 24)]  # the native one; and one with pixels past the last whole patch


def tower(family: str, tap: vv.Tap = vv.Tap()) -> vv.Encoder:
    torch.manual_seed(0)
    encoder = new_encoder(TINY | FAMILIES[family], tap=tap).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return encoder


def wanted(encoder, pixels: torch.Tensor, names: tuple[str, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        out = encoder(pixels)
    assert set(names) == {name for name, value in vars(out).items() if isinstance(value, torch.Tensor)}
    return [getattr(out, name) for name in names]


def assert_same(given, expected) -> None:
    for one, two in zip(given, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_encoder_gives_the_same_and_leaves_the_original_alone(family, size):
    encoder, pixels = tower(family), torch.randn(3, 3, *size)
    with torch.inference_mode():
        encoder(pixels)  # a resized table is in the cache
    before = copy.deepcopy(encoder.state_dict())
    frozen = freeze(encoder, height=size[0], width=size[1])
    assert (frozen.height, frozen.width, frozen.grid) == (*size, encoder.grid(*size))
    assert_same(frozen(pixels), wanted(encoder, pixels, frozen.outputs))
    assert_same(frozen.train()(pixels), wanted(encoder, pixels, frozen.outputs))  # nothing is dropped
    assert not any(weight.requires_grad for weight in frozen.parameters())
    after = encoder.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert all(weight.requires_grad for weight in encoder.model.blocks.parameters())


@pytest.mark.parametrize("size", [(32, 32), (32, 36), (44, 24)])
@pytest.mark.parametrize("rule", ["bicubic_offset_always", "bicubic_offset_unequal"])
def test_a_rule_that_moves_the_native_table_moves_a_frozen_one_once(rule, size, monkeypatch):
    monkeypatch.setitem(FAMILIES, "moved", dict(position_prefix=1, position_resize=rule))
    encoder, pixels = tower("moved"), torch.randn(2, 3, *size)
    frozen = freeze(encoder, height=size[0], width=size[1])
    assert_same(frozen(pixels), wanted(encoder, pixels, frozen.outputs))


@pytest.mark.parametrize("batch", ["fixed", "dynamic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_program_gives_the_same(family, batch):
    encoder, (height, width) = tower(family), SIZES[1]
    program = export_program(encoder, height=height, width=width, dynamic_batch=batch == "dynamic")
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any(word in target for target in targets for word in ("upsample", "mkldnn"))  # the size's, the machine's
    names = freeze(encoder, height=height, width=width).outputs
    for count in (1, 2, 5) if batch == "dynamic" else (1,):
        pixels = torch.randn(count, 3, height, width)
        assert_same(program.module()(pixels), wanted(encoder, pixels, names))


def test_what_the_tap_does_not_need_is_left_out():
    encoder, pixels = tower("registers", vv.Tap(-2, norm=False)), torch.randn(2, 3, 32, 32)
    frozen = freeze(encoder, height=32, width=32)
    assert frozen.outputs == ("patch_tokens", "cls_token", "register_tokens")
    assert_same(frozen(pixels), wanted(encoder, pixels, frozen.outputs))
    names = {name for name, _ in frozen.named_parameters()}
    assert any(".blocks.0." in name for name in names)
    assert not any(".blocks.1." in name or ".norm." in name or ".head." in name for name in names)
    without = freeze(tower("siglip"), height=32, width=32, pool=False)
    assert without.outputs == ("patch_tokens",) and not any(".pool." in name for name, _ in without.named_parameters())


def test_towers_side_by_side_freeze_to_one_canvas():
    fused = vv.FusedEncoder([tower("dinov2"), tower("clip")]).eval()
    pixels = torch.randn(2, 6, 40, 24)
    frozen = freeze(fused, height=40, width=24)
    assert frozen.channels == 6 and frozen.grid == (5, 3)
    assert_same(frozen(pixels), wanted(fused, pixels, frozen.outputs))
    program = export_program(fused, height=40, width=24)
    assert_same(program.module()(pixels), wanted(fused, pixels, frozen.outputs))


@pytest.mark.parametrize("shape", [(1, 3, 40, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_another_size_is_refused(shape):
    frozen = freeze(tower("siglip"), height=32, width=32)
    with pytest.raises(ValueError, match=r"frozen to pixels of shape \(batch, 3, 32, 32\), got "):
        frozen(torch.zeros(shape))


def test_an_encoder_that_cannot_take_the_size_is_not_frozen():
    with pytest.raises(ValueError, match="smaller than one patch of 8x8"):
        freeze(tower("siglip"), height=32, width=7)
    encoder = tower("dinov2")
    encoder.model.blocks[0].attn.proj = torch.nn.Sequential(encoder.model.blocks[0].attn.proj)
    with pytest.raises(ValueError, match="plain linear layers, got Sequential: merge adapters first"):
        freeze(encoder, height=32, width=32)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL")
def test_packed_weights_are_not_frozen():
    encoder = tower("siglip")
    pack_for_cpu(encoder, batch=1, height=32, width=32)
    with pytest.raises(ValueError, match="cannot be copied: freeze the encoder before you pack it"):
        freeze(encoder, height=32, width=32)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_onnx_without_its_packages_says_what_to_install(package, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(ValueError, match=rf"^{package} is not installed: pip install 'vlm-vision\[onnx\]'$"):
        export_onnx(tower("siglip"), tmp_path / "encoder.onnx", height=32, width=32)


@pytest.mark.parametrize("fails", [False, True])
def test_an_onnx_file_is_written_whole_or_not_at_all(fails, monkeypatch, tmp_path):
    def save(file, *, external_data):
        assert not external_data
        file.write_bytes(b"new")
        file.with_name(file.name + ".data").write_bytes(b"weights")
        if fails:
            raise OSError("disk full")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(save=save))
    file = tmp_path / "models" / "encoder.onnx"
    file.parent.mkdir()
    file.write_bytes(b"old")
    if fails:
        with pytest.raises(OSError, match="disk full"):
            export_onnx(tower("siglip"), file, height=32, width=32)
    else:
        export_onnx(tower("siglip"), file, height=32, width=32)
    written = {item.name: item.read_bytes() for item in file.parent.iterdir()}
    assert written == ({"encoder.onnx": b"old"} if fails else {"encoder.onnx": b"new", "encoder.onnx.data": b"weights"})
    with pytest.raises(ValueError, match="is a folder: pass a file"):
        export_onnx(tower("siglip"), tmp_path, height=32, width=32)


def test_a_cuda_graph_of_an_encoder_elsewhere_is_refused():
    with pytest.raises(ValueError, match="^a CUDA graph needs an encoder on a CUDA device, got cpu: [^\n]*$"):
        CudaGraph(tower("siglip"), batch=1, height=32, width=32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cuda_graph_gives_the_same(family):
    encoder = tower(family).to("cuda")
    graph = CudaGraph(encoder, batch=2, height=44, width=24)
    one, two = torch.randn(2, 2, 3, 44, 24, device="cuda")
    first, second = graph(one), graph(two, clone=False)
    for out, pixels in ((first, one), (second, two)):
        with torch.no_grad():
            torch.testing.assert_close(out.patch_tokens, encoder(pixels).patch_tokens, rtol=0, atol=1e-5)
    graph(one)
    assert torch.equal(second.patch_tokens, first.patch_tokens)  # the graph's own was overwritten
    with pytest.raises(ValueError, match="captured for pixels of shape"):
        graph(one[:1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_towers_on_streams_of_their_own_give_the_same():
    fused = vv.FusedEncoder([tower("dinov2"), tower("clip")]).eval().to("cuda")
    pixels = torch.randn(4, 6, 40, 24, device="cuda")
    in_turn = fused(pixels)  # with gradients
    for _ in range(5):
        with torch.inference_mode():
            out = fused(pixels)
        torch.testing.assert_close(out.patch_tokens, in_turn.patch_tokens.detach(), rtol=0, atol=1e-5)
