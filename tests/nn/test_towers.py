"""Switches of today's towers: each encodes packed as alone, windows and frames by the law that defines them, and trains."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import vlm_vision as vv
from vlm_vision.nn.position import RESIZE, PositionTable
from vlm_vision.nn.rope import Rope
from vlm_vision.nn.sequence import Part, plan

BASE = vv.ViTConfig(
    image_size=(32, 32), patch_size=4, embed_dim=32, depth=3, num_heads=4, mlp_dim=48, class_token=False, pool="none"
)
QWEN = dict(rope=Rope(), temporal_patch=2, frames="apart")
SWITCHES = {
    "rotary": dict(position="none", rope=Rope()),
    "both": dict(rope=Rope(first=1), position_resize="zoom"),
    "pixtral": dict(position="none", rope=Rope(frequencies="alternate"), mlp="geglu", norm="rms", patch_bias=False),
    "windows": QWEN | dict(position="none", window=4, full_blocks=(1,), mlp="swiglu", norm="rms"),
    "deepstack": QWEN | dict(deepstack=(0, 2), deepstack_dim=24, final_norm=False),
    "grouped": dict(num_kv_heads=2, head_width=12, qk_norm="head"),
    "wide norm": dict(qk_norm="width", norm="rms"),
    "gemma": dict(position="axes", axis_length=20, rope=Rope(base=100.0), qk_norm="head", value_norm=True, post_norm=True,
                  attention_scale=1.0, norm="rms", mlp="geglu_tanh", unit_pixels=True),
    "clipped": dict(clipped=True, mlp="geglu", num_kv_heads=2),
    "sam": dict(window=3, full_blocks=(1,), window_padding=True, relative_position=True),
    "sam3": dict(window=4, full_blocks=(2,), window_padding=True, rope=Rope(span=4), position_grid=(5, 5),
                 position_resize="tile", pre_norm=True),
    "minicpm": dict(merge_after=0, merge_dim=40, position_resize="bucket"),
    "limited": dict(mlp="swiglu", mlp_limit=0.1, norm="rms"),
    "internvl": dict(qk_norm="width", qk_kind="rms", qk_eps=1e-3, norm="rms", outer_norm="layer", outer_eps=1e-2),
    "radio": dict(class_token=True, num_registers=3, pool="prefix", pool_tokens=(0, 2), position_resize="bilinear_crop",
                  final_norm=False),
    "muse": QWEN | dict(rope=Rope(first=1), window=3, full_blocks=(1,), position_resize="bilinear_zeros_transposed"),
    "unequal": dict(position_resize="bicubic_offset_unequal"),
    "clips": dict(frames="joined", time_position=4, rope=Rope()),
    "clips in three axes": dict(position="none", frames="joined", temporal_patch=2, rope=Rope(axes=3)),
}  # fmt: skip


def tower(**switches) -> vv.VisionTransformer:
    torch.manual_seed(0)
    model = vv.VisionTransformer(dataclasses.replace(BASE, **switches)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def equal(one: vv.VisionOutput, other: vv.VisionOutput) -> None:
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor | tuple) and name != "grid":
            torch.testing.assert_close(getattr(other, name), value, rtol=0, atol=2e-5)
        else:
            assert getattr(other, name) == value


@pytest.mark.parametrize("name", SWITCHES)
def test_packed_equals_one_by_one(name):
    model = tower(**SWITCHES[name])
    images = [torch.randn(3, *size) for size in ((32, 32), (16, 48), (32, 32), (24, 40))]
    for image, out in zip(images, model.packed(images), strict=True):
        equal(model(image[None]), out)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_batch_equals_its_images(name):
    model, images = tower(**SWITCHES[name]), torch.randn(2, 3, 24, 40)
    both = model(images)
    for i in range(2):
        one = model(images[i : i + 1])
        torch.testing.assert_close(one.patch_tokens, both.patch_tokens[i : i + 1], rtol=0, atol=2e-5)
        for deep, of_both in zip(one.deepstack, both.deepstack, strict=True):
            torch.testing.assert_close(deep, of_both[i : i + 1], rtol=0, atol=2e-5)
    expected = vv.ViTConfig.num_patch_tokens(model.config, 24, 40)
    assert both.patch_tokens.shape[1] == expected == both.frames * both.grid[0] * both.grid[1]


@pytest.mark.parametrize("name", [name for name, fields in SWITCHES.items() if "frames" in fields])
def test_videos(name):
    model = tower(**SWITCHES[name])
    step = model.config.temporal_patch
    video = torch.randn(1, 3 * step, 3, 16, 24)
    out = model(video)
    assert out.frames == 3 and out.patch_tokens.shape[1] == 3 * 24
    equal(out, model.packed([torch.randn(3, 32, 32), video[0]])[1])
    first = model(video[:, :step])
    if model.config.frames == "apart":
        torch.testing.assert_close(first.patch_tokens, out.patch_tokens[:, :24], rtol=0, atol=2e-5)
    else:
        assert not torch.allclose(first.patch_tokens, out.patch_tokens[:, :24], atol=1e-3)
    still = video[:, :1]
    equal(model(still[:, 0]), model(still.expand(-1, step, -1, -1, -1)))


def test_a_token_depends_on_its_window_alone():
    model = tower(**SWITCHES["windows"] | dict(full_blocks=()))
    image = torch.randn(1, 3, 24, 40)
    changed = image.clone()
    changed[..., :4, :4] += 1  # the first patch, of the first window of 4 x 4
    moved = (model(image).patch_tokens != model(changed).patch_tokens).any(-1)[0].unflatten(0, (6, 10))
    assert moved[:4, :4].all() and moved.sum() == 16


def test_unit_pixels_are_centered_by_the_encoder():
    plain, unit = tower(), tower(unit_pixels=True)
    pixels = torch.rand(1, 3, 24, 40)
    torch.testing.assert_close(unit(pixels).patch_tokens, plain(2 * pixels - 1).patch_tokens)


def test_a_table_smaller_than_the_image_is_tiled():
    model = tower(position_grid=(3, 3), position_resize="tile")
    assert model.position.table.shape == (1, 9, 32)
    small = model.position.table.unflatten(1, (3, 3))
    torch.testing.assert_close(model.position((8, 8))[1].unflatten(1, (8, 8)), small.tile(1, 3, 3, 1)[:, :8, :8])


def test_bounds_clip_what_linear_maps_take_and_give():
    plain, model = tower(mlp="geglu"), tower(mlp="geglu", clipped=True)
    pixels = torch.randn(1, 3, 24, 40)
    torch.testing.assert_close(model(pixels).patch_tokens, plain(pixels).patch_tokens)  # no bounds are infinite ones
    gate, value = (torch.tensor([-0.1, 0.2, -0.3, 0.1]), torch.tensor([-2.0, 2.0, 0.0, 0.5]))
    fc1 = model.blocks[0].mlp.fc1
    fc1.bounds.copy_(torch.cat([gate, value]))
    x = torch.randn(5, 32)
    weights, biases = fc1.weight.chunk(2), fc1.bias.chunk(2)
    both = [
        (x.clamp(b[0], b[1]) @ w.T + c).clamp(b[2], b[3])
        for w, c, b in zip(weights, biases, (gate, value), strict=True)
    ]
    torch.testing.assert_close(fc1(x), torch.cat(both, dim=-1))


@pytest.mark.parametrize("name", SWITCHES)
def test_every_weight_trains(name):
    model = tower(**SWITCHES[name])
    out = model(torch.randn(2, 3, 32, 40))
    loss = out.patch_tokens.pow(2).mean() + sum(features.pow(2).mean() for features in out.deepstack)
    loss.backward()
    assert not [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(num_kv_heads=3), "num_kv_heads 3 does not divide num_heads 4"),
        (dict(window=2, class_token=True), "window is for encoders without class token"),
        (dict(deepstack=(5,), deepstack_dim=8), "expected block numbers from 0 to 2"),
        (dict(deepstack=(1,)), "deepstack needs deepstack_dim"),
        (dict(position="axes"), "does not go with axis_length 0"),
        (dict(position="rope2d", rope=Rope()), "expected a Rope, or None"),
        (dict(pool="prefix"), "pool 'prefix' does not go with pool_tokens"),
        (dict(qk_eps=2.0), "qk_eps is 2.0, expected a small number"),
        (dict(merge_after=1), "merge_after needs merge_dim"),
        (dict(position_grid=(0, 4)), "position_grid is 0: it must be a whole number of at least 1"),
        (dict(mlp_limit=10.0), "mlp_limit is for a gated mlp"),
        (dict(mlp_limit=0.0, mlp="swiglu"), "expected a positive number such as 10.0"),
        (dict(attention_scale="0.5"), "attention_scale is '0.5', expected a positive number"),
        (dict(attention_scale=True), "attention_scale is True, expected a positive number"),
        (dict(full_blocks=(1,)), "full_blocks are the exceptions from a window: set window"),
        (dict(full_blocks=(True,), window=2), "full_blocks is .*expected block numbers"),
        (dict(merge_after=True, merge_dim=8), "merge_after is True, expected a block from 0"),
        (dict(head_width=6, rope=Rope()), "rotary positions need a head width that 4 divides, got 6"),
        (dict(head_width=7, rope=Rope(axes=3)), "rotary positions need a head width that 2 divides, got 7"),
        (dict(patch_drop=0.5, window=2), "patch_drop does not go with window"),
        (dict(patch_drop=0.5, merge_after=0, merge_dim=8), "patch_drop does not go with merge_after"),
        (dict(window=2, window_padding=True, frames="apart"), "window_padding is for encoders of images"),
        (dict(window=2, frames="joined"), "windows lie in one frame: set frames='apart'"),
        (dict(drop_path=False), "drop_path is False, expected a share"),
        (dict(pool="prefix", pool_tokens=(0.0,), class_token=True), "does not go with pool_tokens"),
    ],
)
def test_impossible_towers_say_why(fields, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(BASE, **fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            dict(coordinates="centre"),
            "Rope.coordinates is 'centre', expected one of index, center, share; did you mean 'center'",
        ),
        (dict(frequencies="both"), "Rope.frequencies is 'both', expected one of same, alternate"),
        (dict(axes=4), "Rope.axes is 4, expected one of 2, 3"),
        (dict(axes=2.0), "Rope.axes is 2.0, expected one of 2, 3"),
        (dict(first=-1), "Rope.first is -1: it must be a whole number of at least 0"),
        (dict(span=2.5), "Rope.span is 2.5: it must be a whole number"),
    ],
)
def test_impossible_rotary_positions_say_why(fields, says):
    with pytest.raises(ValueError, match=says):
        Rope(**fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(deepstak=[]), "the saved architecture has unknown fields deepstak: it needs a newer vlm_vision"),
        (dict(rope={"bas": 1.0}), "the saved rope has unknown fields bas"),
        (dict(rope=3), "the saved rope is 3, expected an object"),
        (dict(depth=None), "the saved architecture lacks depth: the file was edited"),
    ],
)
def test_a_saved_architecture_that_was_edited_says_what_is_wrong(change, says):
    state = dataclasses.replace(BASE, rope=Rope()).to_dict() | change
    with pytest.raises(ValueError, match=says):
        vv.ViTConfig.from_dict({name: value for name, value in state.items() if value is not None})


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("rotary", (1, 2, 3, 16, 16), "takes images, got a video of 2 frames"),
        ("windows", (1, 3, 3, 16, 16), "3 frames is no whole number of temporal patches of 2 frames"),
        ("deepstack", (1, 3, 20, 16), "5x4 patches cannot be merged 2 by 2"),
        (
            "deepstack",
            (1, 4, 3, 12, 16),
            "3x4 patches cannot be merged 2 by 2",
        ),  # two frames: an even number of rows in all
        ("minicpm", (1, 3, 20, 16), "5x4 patches cannot be merged 2 by 2"),
        ("gemma", (1, 3, 84, 16), "positions for 20 rows and columns"),
    ],
)
def test_pixels_that_do_not_fit_say_why(name, shape, says):
    with pytest.raises(ValueError, match=says):
        tower(**SWITCHES[name])(torch.randn(shape))


@pytest.mark.parametrize("name", ["windows", "sam", "sam3", "minicpm", "deepstack", "muse"])
def test_towers_that_need_all_patches_leave_none_out(name):
    with pytest.raises(ValueError, match="cannot leave patches out by keep or patch_drop: it has (win|merge|deep)"):
        tower(**SWITCHES[name])(torch.randn(1, 3, 16, 16), keep=torch.tensor([[0, 3]]))


def test_no_patches_are_left_out_of_videos():
    model, keep = tower(**SWITCHES["clips"]), torch.tensor([[0, 3]])
    assert model(torch.randn(1, 1, 3, 16, 16), keep=keep).patch_tokens.shape == (1, 2, 32)
    with pytest.raises(ValueError, match="got a video of 3 frames of tokens; encode all patches"):
        model(torch.randn(1, 3, 3, 16, 16), keep=keep)


@pytest.mark.parametrize("name", ["windows", "sam", "sam3", "minicpm", "deepstack", "clips"])
def test_a_vector_steers_every_tower(name):
    """FiLM of zeros changes nothing, of the same weights as without it: attention stays what it is."""
    plain, steered = tower(**SWITCHES[name]), tower(**SWITCHES[name], film_dim=6)
    state = steered.state_dict()
    films = {key: torch.zeros_like(value) for key, value in state.items() if ".film." in key}
    steered.load_state_dict(plain.state_dict() | films)
    pixels, condition = torch.randn(2, 3, 24, 40), torch.randn(2, 6)
    equal(plain(pixels), steered(pixels, condition=condition))
    for weight in steered.blocks[-1].film.parameters():
        weight.data += 0.1
    assert not torch.allclose(steered(pixels, condition=condition).patch_tokens, plain(pixels).patch_tokens, atol=1e-3)


def test_the_grid_is_that_at_the_tap():
    config = dataclasses.replace(BASE, **SWITCHES["minicpm"] | dict(merge_after=1))
    before, after = vv.Tap(0, norm=False), vv.Tap(1, norm=False)
    model = vv.VisionTransformer(config)
    for tap, grid in ((before, (6, 10)), (after, (3, 5))):
        assert model(torch.randn(1, 3, 24, 40), tap=tap).grid == grid == config.token_grid(24, 40, tap)
        assert config.num_patch_tokens(24, 40, tap) == grid[0] * grid[1]
    assert config.token_grid(20, 40, before) == (5, 10)
    with pytest.raises(ValueError, match="before and after the merger"):
        config.token_grid(24, 40, vv.Tap(0, more=(1,)))


def test_modules_past_the_tap_are_unused():
    model = tower(**QWEN, deepstack=(2, -1, 0, 2), deepstack_dim=24)
    unused = {id(part) for part in model.unused_modules(vv.Tap(-2))}
    assert unused == {id(part) for part in (model.blocks[2], *(model.deepstack[i] for i in (0, 1, 3)), model.pool_norm)}
    model = tower(**SWITCHES["minicpm"] | dict(merge_after=1))
    assert model.merge in model.unused_modules(vv.Tap(0)) and model.merge not in model.unused_modules(vv.Tap(1))


@pytest.mark.parametrize("fields", [dict(post_norm=True), dict(clipped=True)])
def test_a_scale_behind_a_norm_or_a_clip_is_not_folded(fields):
    model = tower(layer_scale=0.5, **fields)
    with pytest.raises(ValueError, match="LayerScale does not fold into layers whose outputs are normed or clipped"):
        model.fold_layer_scale()
    assert model.blocks[0].residual1.scale is not None


def test_an_output_maps_every_tensor():
    out = tower(**SWITCHES["deepstack"])(torch.randn(2, 3, 16, 16))
    twice = out.map(lambda tensor: 2 * tensor)
    assert (twice.grid, twice.frames) == (out.grid, out.frames) and len(twice.deepstack) == 2
    assert torch.equal(twice.patch_tokens, 2 * out.patch_tokens)
    assert all(torch.equal(one, 2 * two) for one, two in zip(twice.deepstack, out.deepstack, strict=True))


class OnMeta(TorchDispatchMode):
    """Every operation gives tensors on the meta device: nothing is copied from the CPU, which a CUDA graph cannot hold."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for one in out if isinstance(out, tuple | list) else (out,):
            assert not isinstance(one, torch.Tensor) or one.is_meta, func
        return out


@pytest.mark.parametrize("name", ["windows", "muse", "deepstack", "clips", "rotary"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_plan_is_made_on_the_device(name, packed):
    config = dataclasses.replace(BASE, **SWITCHES[name])
    with OnMeta():
        made = plan(config, [Part(1, 1, (6, 10))], packed=packed, device=torch.device("meta"))
    assert made.full.grid == (6, 10)


def test_a_limit_is_that_of_the_gate_and_of_the_size_of_the_value():
    model = tower(**SWITCHES["limited"])
    mlp, x = model.blocks[0].mlp, torch.randn(2, 5, 32)
    gate, value = mlp.fc1(x).chunk(2, dim=-1)
    expected = mlp.fc2(torch.nn.functional.silu(gate.clamp(max=0.1)) * value.clamp(-0.1, 0.1))
    torch.testing.assert_close(mlp(x), expected)
    assert (mlp(x) - mlp.fc2(torch.nn.functional.silu(gate) * value)).abs().max() > 1e-3


def test_a_merger_of_no_block_is_not_used():
    model, image = tower(**QWEN, deepstack=(2, -1, 0, 2), deepstack_dim=24), torch.randn(1, 3, 16, 16)
    first, last = model(image).deepstack
    for unused in (1, 3):
        model.deepstack[unused].fc2.bias.data += 1
    model.deepstack[0].fc2.bias.data += 1
    again = model(image).deepstack
    torch.testing.assert_close(again, (first, last + 1))


def test_norms_around_the_blocks_may_be_of_another_kind():
    model = tower(**SWITCHES["internvl"])
    kinds = [type(norm).__name__ for norm in (model.blocks[0].norm1, *model.blocks[0].attn.norms, model.norm)]
    assert kinds == ["RMSNorm", "RMSNorm", "RMSNorm", "LayerNorm"]
    assert (model.blocks[0].attn.norms[0].eps, model.norm.eps) == (1e-3, 1e-2)


def test_chosen_prefix_tokens_pool_side_by_side():
    out = tower(**SWITCHES["radio"])(torch.randn(2, 3, 24, 40))
    expected = torch.cat([out.cls_token, out.register_tokens[:, 1]], dim=1)
    torch.testing.assert_close(out.pooled, expected)


def test_a_cropped_table_is_the_corner_of_a_square_one():
    table = torch.randn(1, 2, 8, 8)
    square, wide = (RESIZE["bilinear_crop"](table, grid) for grid in ((6, 6), (3, 6)))
    assert torch.equal(square[..., :3, :], wide) and torch.equal(RESIZE["bilinear_crop"](table, (8, 5)), table[..., :5])


def test_clips_of_one_frame_are_images():
    model, image = tower(**SWITCHES["clips"]), torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(model(image[:, None]).patch_tokens, model(image).patch_tokens)
    alone, pair = model(image).patch_tokens, model(image[:, None].expand(-1, 2, -1, -1, -1)).patch_tokens
    assert not torch.allclose(alone, pair[:, :16])


def test_a_configuration_goes_through_json():
    config = dataclasses.replace(BASE, **SWITCHES["windows"])
    assert vv.ViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_rule_that_always_moves_positions_moves_them_on_the_native_grid_too():
    table = PositionTable(prefix=0, grid=(4, 4), dim=8, resize="bicubic_offset_always")
    square = table.table.detach().unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    moved = F.interpolate(square, scale_factor=(4.1 / 4, 4.1 / 4), mode="bicubic", align_corners=False)
    assert torch.allclose(table((4, 4))[1], moved.flatten(2).mT, atol=1e-6)
    assert not torch.allclose(table((4, 4))[1], table.table, atol=1e-4)


@torch.inference_mode()
def test_more_tapped_blocks_follow_in_the_channels():
    model = vv.VisionTransformer(
        vv.ViTConfig(image_size=(16, 16), patch_size=8, embed_dim=32, depth=4, num_heads=2, mlp_dim=48, num_registers=1)
    ).eval()
    x = torch.randn(2, 3, 16, 16)
    for norm in (True, False):
        both = model(x, tap=vv.Tap(-1, norm, more=(-3, 0)))
        each = [model(x, tap=vv.Tap(layer, norm)) for layer in (3, 1, 0)]
        for name in ("patch_tokens", "cls_token", "register_tokens"):
            assert torch.equal(getattr(both, name), torch.cat([getattr(out, name) for out in each], -1))
        packed = model.packed([x[0]], tap=vv.Tap(-1, norm, (-3, 0)))[0]
        assert torch.equal(packed.cls_token, both.cls_token[:1])
        for taps in ((-1, norm, (-3, 0)), (0, norm, (3,))):  # the pooled vector, of the last block wherever it is named
            assert torch.equal(model(x, tap=vv.Tap(*taps)).pooled, model(x).pooled)
        assert model(x, tap=vv.Tap(0, norm, (1,))).pooled is None
        assert torch.equal(model(x, tap=vv.Tap(-1, norm, (-3, 0)), patches=False).cls_token, both.cls_token)
    assert vv.Tap(layer=1, more=(2, 0)).blocks(4) == (1, 2, 0) and vv.Tap(layer=1, more=(2, 0)).block(4) == 2
    with pytest.raises(ValueError, match=r"Tap\(layer=4\) is outside this encoder of 4 blocks"):
        model(x, tap=vv.Tap(more=(4,)))
    with pytest.raises(ValueError, match="whole numbers of blocks in more"):
        vv.Tap(more=(1.5,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got layer=True"):
        vv.Tap(layer=True)


def test_a_rule_for_unequal_sides_moves_a_native_table_too():
    table = PositionTable(prefix=1, grid=(4, 4), dim=8, resize="bicubic_offset_unequal")
    native = table.table[:, 1:]
    for sides in (None, (32, 32), (35, 35)):
        assert table((4, 4), sides)[1] is native or torch.equal(table((4, 4), sides)[1], native)
    for sides in ((32, 35), (36, 33)):
        moved = table((4, 4), sides)[1]
        assert not torch.allclose(moved, native, atol=1e-4)
        always = RESIZE["bicubic_offset_always"](native.mT.unflatten(2, (4, 4)), (4, 4))
        torch.testing.assert_close(moved, always.flatten(2).mT)
