"""Packed weights compute the same."""

import copy

import pytest
import torch
from support.golden import golden_case

import vlm_vision as vv
from vlm_vision.deploy.cpu_layout import PackedLinear, pack_for_cpu

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL")


@pytest.mark.parametrize("name", ["hf_dinov2_swiglu", "hf_dinov2_reg", "hf_siglip_p14_cropped", "hf_clip_vision_proj"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_packed_encoder_gives_the_same_at_its_shape_and_at_others(dtype, tolerance, name):
    encoder = vv.load(golden_case(name), dtype=dtype)
    packed = copy.deepcopy(encoder)
    pack_for_cpu(packed, batch=2, height=35, width=35)
    assert isinstance(packed.model.blocks[0].mlp.fc2, PackedLinear)
    for shape in [(2, 3, 35, 35), (1, 3, 35, 35), (1, 3, 28, 49)]:
        pixels = torch.randn(shape)
        with torch.inference_mode():
            ours, wanted = packed(pixels).patch_tokens.float(), encoder(pixels).patch_tokens.float()
        assert (ours - wanted).abs().max() / wanted.abs().max() < tolerance


def test_packing_needs_a_dtype_that_the_kernels_know(encoder):
    with pytest.raises(ValueError, match="float32 and bfloat16 on the CPU, got torch.float64"):
        pack_for_cpu(encoder.double(), batch=1, height=32, width=32)
