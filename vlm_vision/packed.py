"""Linear layers with weights laid out for the CPU's matrix kernels, for inference at one shape.

PyTorch hands MKL and oneDNN a weight matrix as it is stored, and they rearrange it in every call. Rearranged once, small
batches run a good deal faster; the price is a second copy of the weights.
"""

import torch
from torch import Tensor, nn

from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.vit import Attention, Mlp, VisionTransformer


class PackedLinear(nn.Module):
    """A linear layer that computes with packed weights where it can, else as before.

    Packed: without gradients, on the CPU, at the number of rows it was packed for. float32 is packed for MKL, bfloat16
    for oneDNN.
    """

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.weight, self.bias, self.rows = linear.weight, linear.bias, rows
        weight = linear.weight.detach()
        if weight.dtype == torch.float32:
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.numel() != self.rows * x.shape[-1] or x.dtype != self.weight.dtype:
            return nn.functional.linear(x, self.weight, self.bias)
        if x.dtype == torch.float32:
            return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack_for_cpu(encoder: Encoder | FusedEncoder, *, batch: int, height: int, width: int) -> None:
    """Fold LayerScale and pack the blocks' linear layers, in place, for pixels of (batch, C, height, width).

    Outputs stay the same to rounding; other shapes work and run unpacked. Do this last: a packed encoder is neither
    moved, trained nor saved.

    Raises:
        ValueError: this PyTorch has no MKL or oneDNN, or the encoder is not on the CPU in float32 or bfloat16.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        raise ValueError("this PyTorch was built without MKL or oneDNN: run the encoder unpacked")
    if encoder.device.type != "cpu" or encoder.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"packing is for float32 and bfloat16 on the CPU, got {encoder.dtype} on {encoder.device}")
    encoder.fold_layer_scale()
    for tower in [module for module in encoder.modules() if isinstance(module, VisionTransformer)]:
        rows = batch * (tower.config.num_prefix_tokens + encoder.num_patch_tokens(height, width))
        for part in [module for module in tower.blocks.modules() if isinstance(module, Attention | Mlp)]:
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, PackedLinear(child, rows))
