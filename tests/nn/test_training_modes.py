"""What training does and evaluation does not: checkpointing, stochastic depth, dropped patches, adapters, meta tensors."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import vlm_vision as vv
from vlm_vision.new_models import new_encoder
from vlm_vision.nn.blocks import Residual

TINY = dict(image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_dim=48)
LEARNED = dict(position_prefix=1, num_registers=1, mask_token=True)
ROTARY = dict(position="rope2d", num_registers=1, mask_token=True, key_bias=False)
MAP = dict(class_token=False, pool="map", mlp="gelu_tanh")


def tower(**fields) -> vv.Encoder:
    encoder = new_encoder(TINY | fields)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return encoder


@pytest.mark.parametrize("fields", [LEARNED, ROTARY, MAP], ids=["learned", "rotary", "map"])
def test_activation_checkpointing_gives_the_same_gradients(fields):
    """Also with what is drawn at random in between, which is drawn again in the backward."""
    encoder, pixels, runs = tower(**fields, drop_path=0.3, patch_drop=0.25).train(), torch.randn(4, 3, 32, 32), []
    calls = []
    encoder.model.blocks[0].attn.register_forward_pre_hook(lambda *_: calls.append(1))
    for encoder.model.gradient_checkpointing in (False, True):
        calls.clear()
        encoder.zero_grad()
        torch.manual_seed(7)
        encoder(pixels).pooled.square().sum().backward()
        runs.append({name: w.grad.clone() for name, w in encoder.named_parameters() if w.grad is not None})
        assert len(calls) == (2 if encoder.model.gradient_checkpointing else 1)  # once more in the backward
    assert runs[0].keys() == runs[1].keys()
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=0, atol=1e-6)


def test_drop_path_drops_whole_samples_at_its_rate_and_keeps_the_mean():
    residual, x, y = Residual(4, None, 0.4).train(), torch.zeros(20000, 2, 4), torch.ones(20000, 2, 4)
    out = residual(x, y)
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert set(out[:, 0, 0].tolist()) == {0.0, (torch.ones(()) / 0.6).item()}
    assert (out[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.015)  # four deviations
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(residual.eval()(x, y), y)


@pytest.mark.parametrize("fields", [LEARNED, ROTARY, MAP], ids=["learned", "rotary", "map"])
def test_dropped_patches(fields):
    encoder, pixels = tower(**fields, patch_drop=0.3).train(), torch.randn(3, 3, 40, 24)
    out = encoder(pixels)
    assert out.grid == (5, 3) and out.kept.shape == (3, 10) and out.patch_tokens.shape == (3, 10, 32)  # 0.7 of 15
    assert (out.kept.diff(dim=1) > 0).all() and out.kept.min() >= 0 and out.kept.max() < 15
    assert len({tuple(row) for row in out.kept.tolist()}) > 1  # drawn for each image
    assert not torch.equal(out.kept, encoder(pixels).kept)
    asked = encoder.eval()(pixels, keep=out.kept)
    torch.testing.assert_close(asked.patch_tokens, out.patch_tokens)
    torch.testing.assert_close(asked.pooled, out.pooled)
    assert torch.equal(asked.kept, out.kept)
    whole = encoder(pixels)
    assert whole.kept is None and whole.patch_tokens.shape == (3, 15, 32)


@pytest.mark.parametrize("fields", [LEARNED, ROTARY], ids=["learned", "rotary"])
def test_all_patches_kept_in_another_order_are_the_same_in_that_order(fields):
    """Each kept patch has its own position."""
    encoder, pixels = tower(**fields).eval(), torch.randn(2, 3, 24, 40)
    order = torch.stack([torch.randperm(15), torch.randperm(15)])
    with torch.no_grad():
        ours, whole = encoder(pixels, keep=order), encoder(pixels)
    expected = whole.patch_tokens.gather(1, order[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(ours.patch_tokens, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pooled, whole.pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [LEARNED, ROTARY], ids=["learned", "rotary"])
def test_mask_and_keep_together(fields):
    """The mask is of the whole grid: a masked patch that is kept shows nothing, one that is left out does not count."""
    encoder, pixels = tower(**fields).eval(), torch.randn(1, 3, 32, 32)
    keep, mask = torch.tensor([[1, 5, 6, 9]]), torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [5, 10]] = True
    with torch.no_grad():
        plain, out = (encoder(pixels, keep=keep, mask=m).patch_tokens for m in (None, mask))
        other = pixels.clone()
        other[:, :, 8:16, 8:16] = 7.0  # patch 5
        assert torch.equal(encoder(other, keep=keep, mask=mask).patch_tokens, out)
        mask[0, 10] = False
        assert torch.equal(encoder(pixels, keep=keep, mask=mask).patch_tokens, out)
    assert not torch.allclose(plain, out, atol=1e-3)


EXPLICIT = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "pool.q", "pool.kv", "pool.proj"]


@pytest.mark.parametrize("targets", ["all-linear", EXPLICIT], ids=["all-linear", "by-name"])
@pytest.mark.parametrize("fields", [MAP, dict(MAP, pool="query", mlp="swiglu")], ids=["map", "query"])
def test_lora_reaches_every_linear_layer_and_learns_in_each(fields, targets):
    encoder = tower(**fields)
    linear = {name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    assert any(".pool.kv" in name for name in linear)
    targets = targets if fields["pool"] == "map" or isinstance(targets, str) else [t for t in targets if t != "pool.q"]
    adapted = get_peft_model(encoder, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted(torch.randn(2, 3, 32, 32)).pooled.square().sum().backward()
    gradients = {name: weight.grad for name, weight in adapted.named_parameters() if ".lora_" in name}
    reached = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in gradients}
    assert reached == linear
    assert len(gradients) == 2 * len(linear)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    assert not any(weight.requires_grad for name, weight in adapted.named_parameters() if ".lora_" not in name)


@pytest.mark.parametrize("fields", [LEARNED, ROTARY, MAP, dict(position="sincos2d")])
def test_on_the_meta_device_nothing_is_allocated(fields):
    config = vv.ViTConfig(**(TINY | fields | dict(image_size=(32, 32), embed_dim=2**16, mlp_dim=2**17, depth=50)))
    with torch.device("meta"):
        model = vv.VisionTransformer(config)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert sum(tensor.nbytes for tensor in tensors) > 2**40  # would not fit
