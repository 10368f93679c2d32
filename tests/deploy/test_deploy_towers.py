"""Today's towers frozen, exported, traced and compiled at one size give what they give as they are."""

import importlib.util

import pytest
import torch

import vlm_vision as vv
from vlm_vision.deploy.export import export_onnx, export_program, freeze
from vlm_vision.deploy.patch_size import with_patch_size
from vlm_vision.encoder import Encoder, Origin
from vlm_vision.nn.rope import Rope
from vlm_vision.preprocess.spec import HALF, Preprocess

BASE = dict(
    image_size=(32, 32), patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=48, class_token=False, pool="none"
)
VIDEO = dict(position="none", rope=Rope(), temporal_patch=2, frames="apart")
FAMILIES = {
    "qwen2.5": VIDEO | dict(window=2, full_blocks=(1,), mlp="swiglu", norm="rms"),
    "qwen3": VIDEO | dict(position="learned", position_resize="zoom", deepstack=(0, 1), deepstack_dim=24, final_norm=False),
    "pixtral": dict(position="none", rope=Rope(frequencies="alternate"), mlp="geglu", norm="rms"),
    "gemma4": dict(position="axes", axis_length=9, rope=Rope(base=100.0), qk_norm="head", value_norm=True, post_norm=True,
                   attention_scale=1.0, norm="rms", num_kv_heads=2),
    "sam": dict(window=3, full_blocks=(1,), window_padding=True, relative_position=True),
    "minicpm": dict(merge_after=0, merge_dim=40, position_resize="bucket"),
    "hunyuan": dict(position_resize="bicubic_offset_always"),
}  # fmt: skip
SIZE = (48, 32)


def tower(family: str, **changes) -> Encoder:
    torch.manual_seed(0)
    model = vv.VisionTransformer(vv.ViTConfig(**BASE | FAMILIES[family] | changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    squash = Preprocess(
        resize="squash", resize_to=SIZE, resample="bicubic", crop=None, rescale=1 / 255, mean=HALF[0], std=HALF[1]
    )
    return Encoder(model, preprocess=squash, origin=Origin("none", "none"))


def expected(encoder: Encoder, pixels: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        out = encoder(pixels)
    return [out.patch_tokens, *out.deepstack]


def same(given, expected) -> None:
    for one, two in zip(given, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5 * two.abs().max().item())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_tower_and_its_trace_and_program_give_the_same(family):
    encoder, pixels = tower(family), torch.randn(2, 3, *SIZE)
    frozen = freeze(encoder, height=SIZE[0], width=SIZE[1])
    outputs = expected(encoder, pixels)
    same(frozen(pixels), outputs)
    assert frozen.outputs == ("patch_tokens", *(f"deepstack_{i}" for i in range(len(outputs) - 1)))
    assert frozen.grid[0] * frozen.grid[1] == outputs[0].shape[1]
    same(torch.jit.trace(frozen, pixels)(pixels), outputs)  # with gradients enabled, as OpenVINO's converter traces
    same(export_program(encoder, height=SIZE[0], width=SIZE[1], dynamic_batch=False).module()(pixels[:1]),
         [part[:1] for part in outputs])  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_tower_compiles_in_one_graph(family):
    encoder, pixels = tower(family), torch.randn(2, 3, *SIZE)
    frozen = freeze(encoder, height=SIZE[0], width=SIZE[1])
    with torch.no_grad():
        same(torch.compile(frozen, backend="aot_eager", fullgraph=True)(pixels), expected(encoder, pixels))


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime is not installed",
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_an_onnx_file_gives_the_same(family, tmp_path):
    import onnxruntime

    encoder, pixels = tower(family), torch.randn(1, 3, *SIZE)
    export_onnx(encoder, tmp_path / "tower.onnx", height=SIZE[0], width=SIZE[1], dynamic_batch=False)
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx")
    same([torch.from_numpy(x) for x in session.run(None, {"pixels": pixels.numpy()})], expected(encoder, pixels))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_gives_the_same(family):
    import openvino

    encoder, pixels = tower(family), torch.randn(2, 3, *SIZE)
    model = openvino.convert_model(freeze(encoder, height=SIZE[0], width=SIZE[1]), example_input=pixels)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    same([torch.from_numpy(x) for x in compiled(pixels.numpy()).values()], expected(encoder, pixels))


@torch.no_grad()
def test_a_frozen_tower_keeps_the_mergers_of_its_tap_alone():
    encoder = tower("qwen3", deepstack=(2, -1, 0, 0))
    encoder.tap = vv.Tap(0, norm=False)
    frozen = freeze(encoder, height=SIZE[0], width=SIZE[1])
    assert len(frozen.encoder.model.deepstack) == 1
    pixels = torch.randn(2, 3, *SIZE)
    same(frozen(pixels), expected(encoder, pixels))


@torch.no_grad()
def test_a_tower_frozen_before_its_merger_keeps_its_grid():
    encoder = tower("minicpm", merge_after=1)
    encoder.tap = vv.Tap(0, norm=False)
    assert encoder.grid(40, 32) == (5, 4) and encoder.num_patch_tokens(40, 32) == 20
    frozen = freeze(encoder, height=40, width=32)
    assert frozen.grid == (5, 4) and frozen.encoder.model.merge is None
    pixels = torch.randn(1, 3, 40, 32)
    same(frozen(pixels), expected(encoder, pixels))
    with pytest.raises(ValueError, match="blocks before and after the merger"):
        Encoder(encoder.model, preprocess=encoder.preprocess, tap=vv.Tap(0, more=(1,)), origin=encoder.origin)


@torch.no_grad()
def test_positions_that_always_move_are_moved_once():
    encoder, pixels = tower("hunyuan"), torch.randn(1, 3, 32, 32)
    native = expected(encoder, pixels)
    same(freeze(encoder, height=32, width=32)(pixels), native)
    again = with_patch_size(encoder, 8)
    assert again.config == encoder.config
    same(expected(again, pixels), native)
    larger = torch.randn(1, 3, 48, 48)
    same(expected(with_patch_size(encoder, 8, image_size=48), larger), expected(encoder, larger))


@torch.no_grad()
@pytest.mark.parametrize("last", [0, -1])
def test_a_frozen_tower_of_several_blocks_pools_as_it_does(last):
    encoder = tower("pixtral", class_token=True, pool="cls", pool_head="linear", pool_dim=8)
    encoder.tap = vv.Tap(1, more=(last,))
    frozen, pixels = freeze(encoder, height=SIZE[0], width=SIZE[1]), torch.randn(2, 3, *SIZE)
    out = encoder(pixels)
    named = dict(zip(frozen.outputs, frozen(pixels), strict=True))
    same([named["patch_tokens"], named["cls_token"]], [out.patch_tokens, out.cls_token])
    assert ("pooled" in named) == (out.pooled is not None) == (last == -1)
    if last == -1:
        same([named["pooled"]], [out.pooled])
