"""Linear layers with weights laid out for the CPU's matrix kernels, for inference at one shape.

PyTorch passes a weight matrix to MKL and oneDNN as it is stored, and they rearrange it in every call. Rearranged once, small
batches run much faster, and in bfloat16 oneDNN applies GELU while the product is still in cache; the price is a
second copy of the weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.blocks import Attention, Mlp
from vlm_vision.nn.config import Activation
from vlm_vision.nn.linear import FEWEST_ROWS, FUSED, Linear, onednn, prefers_onednn
from vlm_vision.nn.vit import VisionTransformer


class PackedLinear(nn.Module):
    """A linear layer, and the activation `act` after it if there is one, called `activation`, with packed weights where
    possible, else as before.

    Packed: without gradients, on the CPU, at the number of rows it was packed for. bfloat16 is packed for oneDNN, float32
    for MKL or oneDNN, whichever suits the processor; oneDNN takes GELU into the product.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rows: int,
        activation: Activation | None = None,
        act: Callable[[Tensor, bool], Tensor] | None = None,
    ):
        super().__init__()
        self.act = act
        self.weight, self.bias, self.rows = linear.weight, linear.bias, rows
        self.activation: Activation | None = activation
        weight = linear.weight.detach()
        self.for_mkl = weight.dtype == torch.float32 and not prefers_onednn()
        if self.for_mkl:
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        fits = x.numel() == self.rows * x.shape[-1] and x.dtype == self.weight.dtype
        if torch.is_grad_enabled() or not fits:
            return self._activate(nn.functional.linear(x, self.weight, self.bias))
        if self.for_mkl:
            return self._activate(torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows))
        if self.activation in FUSED:
            return onednn(x, self.packed, self.bias, self.activation)
        return self._activate(onednn(x, self.packed, self.bias))

    def _activate(self, x: Tensor) -> Tensor:
        return x if self.act is None else self.act(x, not torch.is_grad_enabled())


def _done(x: Tensor, inplace: bool) -> Tensor:
    """Identity, instead of an activation that the layer before has applied."""
    return x


def pack_for_cpu(encoder: Encoder | FusedEncoder, *, batch: int, height: int, width: int) -> None:
    """Fold LayerScale and pack the blocks' linear layers, in place, for pixels of (batch, C, height, width).

    Outputs stay the same to rounding; other shapes work and run unpacked. Do this last: a packed encoder is neither
    moved, trained nor saved.

    Raises:
        ValueError: this PyTorch has no MKL or oneDNN, or the encoder is not on the CPU in float32 or bfloat16.
    """
    _check(encoder.device, encoder.dtype)
    encoder.fold_layer_scale()
    for tower in [module for module in encoder.modules() if isinstance(module, VisionTransformer)]:
        rows = batch * (tower.config.num_prefix_tokens + encoder.num_patch_tokens(height, width))
        for part in list(tower.blocks.modules()):
            if isinstance(part, Attention):
                part.qkv, part.proj = PackedLinear(part.qkv, rows), PackedLinear(part.proj, rows)  # type: ignore[assignment]
            elif isinstance(part, Mlp):
                part.fc1 = PackedLinear(part.fc1, rows, part.kind, part.act)  # type: ignore[assignment]
                part.fc2 = PackedLinear(part.fc2, rows)  # type: ignore[assignment]
                part.act = _done


def pack_linears(model: nn.Module, run: Callable[[], object]) -> None:
    """Pack the linear layers of any model, in place, each for as many rows as it first gets in `run`, which runs the model.

    As `pack_for_cpu`, for a model of unknown structure. Layers that get few rows or none stay as they are.

    Raises:
        ValueError: this PyTorch has no MKL or oneDNN, or the model is not on the CPU in float32 or bfloat16.
    """
    weight = next(model.parameters())
    _check(weight.device, weight.dtype)
    rows: dict[nn.Module, int] = {}

    def seen(part: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows.setdefault(part, given[0].shape[:-1].numel())

    linears = [part for part in model.modules() if type(part) in (nn.Linear, Linear)]
    hooks = [part.register_forward_pre_hook(seen) for part in linears]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for parent in list(model.modules()):
        for name, part in parent.named_children():
            if rows.get(part, 0) >= FEWEST_ROWS:
                setattr(parent, name, PackedLinear(part, rows[part]))  # type: ignore[arg-type]


def _check(device: torch.device, dtype: torch.dtype) -> None:
    if not torch.backends.mkldnn.is_available() or not (torch.backends.mkl.is_available() or prefers_onednn()):
        raise ValueError("this PyTorch was built without MKL or oneDNN: run it unpacked")
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"packing is for float32 and bfloat16 on the CPU, got {dtype} on {device}")
