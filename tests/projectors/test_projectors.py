"""From patch tokens to the width of a language model."""

import json

import pytest
import torch
import torch.nn.functional as F
from support.golden import golden_case
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import projectors

GRIDS = [(4, 4), (2, 6)]
SMALL = {
    "perceiver": dict(num_latents=5, depth=2, num_heads=4, num_kv_heads=2, head_dim=8),
    "qformer": dict(num_queries=5, width=32, depth=3, num_heads=4),
    "visual_vocabulary": dict(words=64, indicators=5),
    "c_abstractor": dict(num_queries=9, hidden_dim=20, depth=2, positions=4),
}


def small(name: str) -> projectors.Projector:
    """24 channels to 40, few layers."""
    return projectors.build(name, in_dim=24, out_dim=40, **SMALL.get(name, {}))


@pytest.mark.parametrize("name", projectors.PROJECTORS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_projector_keeps_its_promise_of_tokens(name, grid):
    projector = small(name)
    out = projector(torch.randn(2, grid[0] * grid[1], 24), grid)
    assert out.shape == (2, projector.num_tokens(grid), 40)
    lie = projector.out_grid(grid)
    assert lie is None or lie[0] * lie[1] == projector.num_tokens(grid)
    described = projectors.describe(projector)
    assert described.items() >= {"name": name, "in_dim": 24, "out_dim": 40}.items()
    assert str(projectors.build(**json.loads(json.dumps(described)))) == str(projector)


def test_mlp_is_the_projector_of_llava():
    from safetensors.torch import load_file

    folder = golden_case("hf_llava_clip")
    golden, weights = load_file(folder / "golden.safetensors"), load_file(folder / "model.safetensors")
    projector = projectors.build("mlp", in_dim=48, out_dim=64)
    stem = "multi_modal_projector.linear_"
    projector.load_state_dict({f"fc{i}.{p}": weights[f"{stem}{i}.{p}"] for i in (1, 2) for p in ("weight", "bias")})
    out = projector(golden["features"], (6, 6))
    assert (out - golden["projected"]).abs().max() / golden["projected"].abs().max() < 1e-5


def test_fused_mlp_has_the_dimensions_of_openvla():
    with torch.device("meta"):
        projector = projectors.build("fused_mlp", in_dim=2176, out_dim=4096)
    shapes = [tuple(weight.shape) for weight in projector.parameters() if weight.ndim == 2]
    assert shapes == [(8704, 2176), (4096, 8704), (4096, 4096)]


def test_fused_mlp_is_three_layers_with_exact_gelu():
    projector, tokens = projectors.build("fused_mlp", in_dim=8, out_dim=6), torch.randn(1, 4, 8)
    w = dict(projector.named_parameters())
    x = tokens
    for i in (1, 2, 3):
        x = F.linear(x, w[f"fc{i}.weight"], w[f"fc{i}.bias"])
        x = F.gelu(x) if i < 3 else x
    torch.testing.assert_close(projector(tokens, (2, 2)), x)


def test_an_unknown_name_is_refused_with_the_near_one():
    with pytest.raises(ValueError, match="did you mean 'fused_mlp'"):
        projectors.build("fuse_mlp", in_dim=4, out_dim=4)
    with pytest.raises(ValueError, match="'linear' does not take these options"):
        projectors.build("linear", in_dim=4, out_dim=4, depth=3)
    with pytest.raises(ValueError, match="in_dim=0"):
        projectors.build("linear", in_dim=0, out_dim=4)


def test_tokens_with_a_class_token_are_refused():
    with pytest.raises(ValueError, match="without CLS or registers"):
        projectors.build("linear", in_dim=4, out_dim=4)(torch.zeros(1, 5, 4), (2, 2))


def test_pixel_shuffle_puts_the_four_neighbors_side_by_side():
    projector = projectors.build("pixel_shuffle", in_dim=1, out_dim=4)
    projector.fc1.weight.data.copy_(torch.eye(4))
    tokens = torch.arange(8.0).reshape(1, 8, 1)  # two rows of four
    assert projector(tokens, (2, 4)).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    with pytest.raises(ValueError, match="needs a grid of multiples of 2, got 3x4"):
        projector(torch.zeros(1, 12, 1), (3, 4))


@pytest.mark.parametrize("name", projectors.PROJECTORS)
@pytest.mark.parametrize("grid", GRIDS)
def test_flops_are_those_that_torch_counts(name, grid):
    projector = small(name)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        projector(torch.randn(1, grid[0] * grid[1], 24), grid)
    assert projector.flops(grid) == counter.get_total_flops()


@pytest.mark.parametrize("name", projectors.PROJECTORS)
def test_gradients_reach_every_parameter(name):
    projector = small(name)
    projector(torch.randn(2, 24, 24), (4, 6)).square().sum().backward()
    for parameter, weight in projector.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, parameter
    assert projector.num_parameters == sum(weight.numel() for weight in projector.parameters())


@pytest.mark.parametrize("name", projectors.PROJECTORS)
@torch.no_grad()
def test_every_projector_compiles_whole_at_any_grid_and_runs_in_half_precision(name):
    torch._dynamo.reset()  # one forward serves every class, and each is compiled anew
    projector = small(name)
    compiled = torch.compile(projector, backend="eager", fullgraph=True)
    for grid in ((4, 6), (2, 8)):
        tokens = torch.randn(2, grid[0] * grid[1], 24)
        torch.testing.assert_close(compiled(tokens, grid), projector(tokens, grid))
    expected = projector(tokens, grid)
    half = projector.bfloat16()(tokens.bfloat16(), grid)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", projectors.PROJECTORS)
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch_and_every_patch_counts(name):
    projector, tokens = small(name).double(), torch.randn(3, 24, 24, dtype=torch.double)
    torch.testing.assert_close(projector(tokens, (4, 6))[1:2], projector(tokens[1:2], (4, 6)))
    for patch in range(24):
        other = tokens.clone()
        other[:, patch] += torch.randn(24)
        assert not torch.allclose(projector(other, (4, 6)), projector(tokens, (4, 6)), rtol=0, atol=1e-12), patch


@pytest.mark.parametrize("name", projectors.PROJECTORS)
@torch.no_grad()
def test_outputs_start_at_a_sane_scale(name):
    out = projectors.build(name, in_dim=256, out_dim=128, **SMALL.get(name, {}))(torch.randn(2, 64, 256), (8, 8))
    assert 0.02 < out.std() < 2


@pytest.mark.parametrize("name", projectors.PROJECTORS)
def test_a_grid_without_rows_is_refused(name):
    projector = small(name)
    with pytest.raises(ValueError, match="at least one row and one column, got 0x4"):
        projector(torch.zeros(1, 0, 24), (0, 4))
    with pytest.raises(ValueError, match="at least one row and one column, got 0x4"):
        projector.num_tokens((0, 4))


@pytest.mark.parametrize(
    ("name", "grid", "out"),
    [
        ("mlp", (3, 5), (3, 5)),
        ("pixel_shuffle", (6, 4), (3, 2)),
        ("patch_merger", (6, 4), (3, 2)),
        ("gated_merger", (6, 4), (3, 2)),
        ("frame_merger", (6, 4), (3, 2)),
        ("avg_pool", (5, 6), (3, 3)),  # an odd side is rounded up
        ("perceiver", (5, 6), None),
        ("qformer", (5, 6), None),
        ("c_abstractor", (24, 24), (12, 12)),
        ("c_abstractor", (16, 36), (8, 18)),
        ("c_abstractor", (36, 16), (18, 8)),
        ("c_abstractor", (27, 27), (12, 12)),
        ("c_abstractor", (1, 500), (1, 144)),
        ("c_abstractor", (500, 1), (144, 1)),
        ("c_abstractor", (4, 6), (4, 6)),  # never more tokens than patches
    ],
)
def test_where_the_tokens_lie(name, grid, out):
    with torch.device("meta"):
        projector = projectors.build(name, in_dim=24, out_dim=40)
    assert projector.out_grid(grid) == out


def test_default_sizes_are_those_of_the_papers():
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    with torch.device("meta"):
        theirs = Blip2QFormerModel(Blip2QFormerConfig()).num_parameters()
        idefics2 = projectors.build("perceiver", in_dim=1152, out_dim=4096, hidden_dim=14336)
        blip2 = projectors.build("qformer", in_dim=1408, out_dim=2560)
        honeybee = projectors.build("c_abstractor", in_dim=1024, out_dim=4096)
    assert [p.num_tokens((24, 24)) for p in (idefics2, blip2, honeybee)] == [64, 32, 144]
    assert blip2.num_parameters == theirs + 32 * 768 + 768 * 2560 + 2560  # queries, linear map
    assert idefics2.layers[0].attn.k_proj.weight.shape == (4 * 96, 4096) and len(idefics2.layers) == 3
    assert [len(honeybee.before), len(honeybee.after), honeybee.positions.shape] == [3, 3, (24, 24, 1024)]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("mlp", {"depth": 0}, "mlp has depth 0, expected a whole number of at least 1"),
        ("mlp", {"activation": "gelu_than"}, "did you mean 'gelu_tanh'"),
        ("patch_merger", {"norm": "batch"}, "norm 'batch', expected one of none, layer, rms, layer_after"),
        ("gated_merger", {"limit": -1.0}, "limit -1.0, expected a positive number, or None"),
        ("frame_merger", {"merge": 0}, "merge 0"),
        ("avg_pool", {"how": "nearest"}, "how 'nearest', expected one of mean, bilinear"),
        ("avg_pool", {"factor": 0}, "factor 0"),
        ("perceiver", {"num_heads": 3, "num_kv_heads": 2}, "num_heads 3, which is not a multiple of num_kv_heads 2"),
        ("qformer", {"width": 30, "num_heads": 4}, "width 30, which is not a multiple of num_heads 4"),
        ("c_abstractor", {"num_queries": 0}, "num_queries 0"),
    ],
)
def test_options_that_make_no_projector_are_refused(name, options, says):
    with pytest.raises(ValueError, match=says):
        projectors.build(name, in_dim=24, out_dim=40, **options)


def test_mlp_of_any_depth_and_activation():
    deep = projectors.build("mlp", in_dim=8, out_dim=6, depth=3, activation="quick_gelu", bias=False)
    x = tokens = torch.randn(1, 4, 8)
    for i, weight in enumerate(deep.parameters()):
        x = (x * torch.sigmoid(1.702 * x) if i else x) @ weight.T
    torch.testing.assert_close(deep(tokens, (2, 2)), x)
    assert list(projectors.build("mlp", in_dim=8, out_dim=6).state_dict()) == [
        f"fc{i}.{part}" for i in (1, 2) for part in ("weight", "bias")
    ]


def test_avg_pool_means_neighbors():
    projector = projectors.build("avg_pool", in_dim=1, out_dim=4)
    projector.mlp = torch.nn.Identity()
    projector.mlp.forward = lambda tokens, grid: tokens
    tokens = torch.arange(8.0).reshape(1, 8, 1)  # two rows of four
    assert projector(tokens, (2, 4)).flatten().tolist() == [2.5, 4.5]
    assert projector(torch.arange(3.0).reshape(1, 3, 1), (1, 3)).flatten().tolist() == [0.5, 1.5]


@torch.no_grad()
def test_resampling_projectors_do_not_care_for_the_order_of_patches_but_the_abstractor_does():
    order = torch.randperm(16)
    tokens = torch.randn(1, 16, 24)
    for name, blind in (("perceiver", True), ("qformer", True), ("c_abstractor", False)):
        projector = small(name)
        same = torch.allclose(projector(tokens, (4, 4)), projector(tokens[:, order], (4, 4)), atol=1e-5)
        assert same == blind, name


@torch.no_grad()
def test_positions_of_the_abstractor_are_its_table_at_its_own_grid_and_keep_a_ramp_elsewhere():
    projector = projectors.build("c_abstractor", in_dim=1, out_dim=4, positions=8, hidden_dim=4, depth=1)
    projector.positions.copy_(torch.arange(8.0)[:, None, None].expand(8, 8, 1))
    assert torch.equal(projector.table((8, 8))[0], projector.positions)
    resized = projector.table((4, 6))[0, :, :, 0]
    assert (resized - resized[:, :1]).abs().max() < 1e-5  # nothing changes along a row
    torch.testing.assert_close(resized[:, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]), rtol=0, atol=0.3)
