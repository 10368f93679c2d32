"""oneDNN's float32 in the place of MKL's: the same numbers, and only where nothing is recorded."""

import pytest
import torch

from vlm_vision.nn import linear
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.vit import VisionTransformer

FIELDS = dict(image_size=(32, 32), patch_size=8, embed_dim=48, depth=2, num_heads=4, mlp_dim=96, position_prefix=1)


@pytest.fixture
def onednn(monkeypatch):
    """A switch: whether oneDNN is preferred on this machine."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch was built without oneDNN")

    def prefer(value: bool) -> None:
        monkeypatch.setattr(linear, "prefers_onednn", lambda: value)

    return prefer


@pytest.mark.parametrize(
    "options", [{}, {"mlp": "gelu_tanh"}, {"mlp": "quick_gelu"}, {"mlp": "swiglu"}, {"key_bias": False}]
)
@torch.inference_mode()
def test_both_libraries_give_the_same_numbers(onednn, options):
    model, pixels = VisionTransformer(ViTConfig(**(FIELDS | options))).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    outs = []
    for value in (False, True):
        onednn(value)
        outs.append(model(pixels).patch_tokens)
    assert (outs[0] - outs[1]).abs().max() / outs[0].abs().max() < 2e-6


def test_training_autocast_and_other_types_are_left_to_pytorch(onednn):
    onednn(True)
    layer, x = linear.Linear(32, 8), torch.randn(20, 32)
    assert not linear.by_onednn(x, layer.weight)  # gradients are recorded
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert linear.by_onednn(x, layer.weight)
        assert not linear.by_onednn(x[:3], layer.weight)  # too few rows to gain anything
        assert not linear.by_onednn(x.double(), layer.weight.double())
        assert linear.by_onednn(x.bfloat16(), layer.weight.bfloat16()) == linear.takes_bfloat16()
        assert not linear.by_onednn(x.to("meta"), layer.weight.to("meta"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert torch.func.vmap(layer)(x[None].expand(3, -1, -1)).shape == (3, 20, 8)


@torch.no_grad()
def test_a_hook_on_the_hidden_layer_sees_it_before_the_activation(onednn):
    onednn(True)
    mlp, seen = VisionTransformer(ViTConfig(**FIELDS)).eval().blocks[0].mlp, []
    handle = mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    x = torch.randn(1, 20, 48)
    with_hook = mlp(x)
    handle.remove()
    assert (seen[0] < -0.2).any()  # GELU gives nothing below -0.17
    torch.testing.assert_close(mlp(x), with_hook)
