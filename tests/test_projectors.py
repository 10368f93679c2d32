"""From patch tokens to the width of a language model."""

import pytest
import torch
import torch.nn.functional as F

import projectors


@pytest.mark.parametrize("name", projectors.PROJECTORS)
@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
def test_every_projector_keeps_its_promise_of_tokens(name, grid):
    projector = projectors.build(name, in_dim=24, out_dim=40)
    out = projector(torch.randn(2, grid[0] * grid[1], 24), grid)
    assert out.shape == (2, projector.num_tokens(grid), 40)
    described = projectors.describe(projector)
    assert described.items() >= {"name": name, "in_dim": 24, "out_dim": 40}.items()
    assert str(projectors.build(**described)) == str(projector)


def test_mlp_is_the_projector_of_llava(shared):
    from safetensors.torch import load_file

    folder = shared / "golden" / "hf_llava_clip"
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


def test_pixel_shuffle_puts_the_four_neighbours_side_by_side():
    projector = projectors.build("pixel_shuffle", in_dim=1, out_dim=4)
    projector.fc1.weight.data.copy_(torch.eye(4))
    tokens = torch.arange(8.0).reshape(1, 8, 1)  # two rows of four
    assert projector(tokens, (2, 4)).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    with pytest.raises(ValueError, match="needs a grid of multiples of it, got 3x4"):
        projector(torch.zeros(1, 12, 1), (3, 4))
