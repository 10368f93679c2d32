"""Linear layers by the CPU library that suits the processor.

PyTorch gives bfloat16 products to oneDNN; asked directly, it applies GELU while the product is in cache.
PyTorch gives float32 products to MKL, which is Intel's and slow elsewhere: on an AMD EPYC with AVX-512 oneDNN does the same
product 1.3 to 1.4 times as fast, and applies GELU while the product is in cache. So in inference, on a CPU that is not
Intel's, oneDNN does it; everywhere else PyTorch as it is. Both are float32 throughout; they round differently.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.nn.config import Activation

FUSED: dict[Activation, str] = {"gelu": "none", "gelu_tanh": "tanh"}
"""Activations that oneDNN applies inside the product, and its name for their approximation."""

FEWEST_ROWS = 16
"""Products of fewer rows are left to PyTorch: nothing is gained."""


@functools.cache
def prefers_onednn() -> bool:
    """Whether oneDNN is the library for float32 on this machine: an x86 processor that is not Intel's, on Linux."""
    information = Path("/proc/cpuinfo")
    if not torch.backends.mkldnn.is_available() or not information.exists():
        return False
    vendors = [line for line in information.read_text().splitlines() if line.startswith("vendor_id")]
    return bool(vendors) and "GenuineIntel" not in vendors[0]


@functools.cache
def takes_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this machine."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes the product: plain tensors on such a CPU, with nothing recorded, traced or cast."""
    if (
        torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    ):  # a trace has one graph, with gradients or without
        return False
    return (
        not torch.is_grad_enabled()
        and x.dtype == weight.dtype
        and (prefers_onednn() if x.dtype == torch.float32 else x.dtype == torch.bfloat16 and takes_bfloat16())
        and x.device.type == weight.device.type == "cpu"
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation | None = None) -> Tensor:
    """activation(x @ weight.T + bias); the weight may be packed for oneDNN."""
    if activation is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], FUSED[activation])


class Linear(nn.Linear):
    """`nn.Linear` by the library that suits the processor."""

    def forward(self, input: Tensor) -> Tensor:
        if by_onednn(input, self.weight):
            return onednn(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


class ClippedLinear(nn.Linear):
    """Several linear maps of one input, each with stored bounds that its input and its output are clipped to (Gemma 4).

    Args:
        sizes: output channels of each map.
    """

    bounds: Tensor
    """(4 for each map,): least and most of the input, least and most of the output."""

    def __init__(self, in_features: int, *sizes: int, bias: bool = True):
        super().__init__(in_features, sum(sizes), bias=bias)
        self.sizes = sizes
        self.register_buffer("bounds", torch.tensor([-torch.inf, torch.inf] * 2).tile(len(sizes)))

    def forward(self, input: Tensor) -> Tensor:
        bounds = self.bounds.unflatten(0, (-1, 4))
        biases = [None] * len(self.sizes) if self.bias is None else self.bias.split(self.sizes)
        outputs = []
        for weight, bias, (low, high, least, most) in zip(self.weight.split(self.sizes), biases, bounds, strict=True):
            outputs.append(F.linear(input.clamp(low, high), weight, bias).clamp(least, most))
        return torch.cat(outputs, dim=-1)


class QKVLinear(nn.Linear):
    """One linear map to queries, keys and values whose key bias stays zero, in training too."""

    def forward(self, input: Tensor) -> Tensor:
        query, _, value = self.bias.chunk(3)
        bias = torch.cat([query, torch.zeros_like(query), value])
        if by_onednn(input, self.weight):
            return onednn(input, self.weight, bias)
        return F.linear(input, self.weight, bias)
