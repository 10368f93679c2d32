"""An encoder's forward at one shape as a CUDA graph: one launch instead of hundreds.

Useful where launches take longer than computation: small batches, on a robot or in a server.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from dataclasses import replace

import torch
from torch import Tensor

from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.output import VisionOutput
from vlm_vision.nn.vit import VisionTransformer

_WARM_UP = 3
"""Runs before the capture, during which libraries choose kernels and allocate workspaces."""


class CudaGraph:
    """The forward of `encoder` at its tap, without gradients, for pixels of (batch, C, height, width).

        graph = CudaGraph(encoder, batch=1, height=224, width=224)
        out = graph(pixels)

    The graph reads weights at their addresses of the capture: changes in place take effect, except for a position table that
    was resized; after weights are moved or replaced, capture again. Not for calls from several streams or threads at once.

    Args:
        encoder: on a CUDA device, in evaluation mode.
        batch, height, width: of the pixels (of a fused encoder's canvas).
        pool: False leaves `pooled` and `logits` None and saves their cost.

    Raises:
        ValueError: an encoder that is not on a CUDA device, or in training mode; a size that it cannot take.
    """

    def __init__(self, encoder: Encoder | FusedEncoder, *, batch: int, height: int, width: int, pool: bool = True):
        if encoder.device.type != "cuda":
            there = (
                "encoder.to('cuda')"
                if torch.cuda.is_available()
                else "this machine has no CUDA device, call the encoder itself"
            )
            raise ValueError(f"a CUDA graph needs an encoder on a CUDA device, got {encoder.device}: {there}")
        if encoder.training:
            raise ValueError("a CUDA graph is for inference, but the encoder is in training mode: call encoder.eval()")
        encoder.grid(height, width)  # says what is wrong with the size
        if not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch is {batch!r}: expected a whole number of at least 1")
        shape = (batch, encoder.config.channels, height, width)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.cuda.device(encoder.device),
            torch.autocast("cuda", enabled=False),  # its casts of weights do not outlive it, and a graph does
        ):
            self._pixels = torch.zeros(shape, dtype=encoder.dtype, device=encoder.device)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    encoder(self._pixels, pool=pool)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            self._held = _tables(encoder, height, width)
            with torch.cuda.graph(self._graph):
                self._out = encoder(self._pixels, pool=pool)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, *, clone: bool = True) -> VisionOutput:
        """Encode pixels of the captured shape, from any device and of any floating dtype.

        Args:
            pixels: (batch, C, height, width)
            clone: False gives the graph's own tensors, which the next call overwrites, and saves their copy.

        Raises:
            ValueError: pixels of another shape.
        """
        if pixels.shape != self._pixels.shape:
            raise ValueError(
                f"this CUDA graph was captured for pixels of shape {tuple(self._pixels.shape)}, got {tuple(pixels.shape)}: "
                "capture another one, or call the encoder itself"
            )
        with torch.cuda.device(self._pixels.device):
            self._pixels.copy_(pixels)
            self._graph.replay()
            return self._out.map(torch.clone) if clone else replace(self._out)


def _tables(encoder: Encoder | FusedEncoder, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """Each tower's positions at its grid of patches: resized tables, which their own cache may let go."""
    sizes = encoder.windows(height, width) if isinstance(encoder, FusedEncoder) else [(height, width)]
    models = [module for module in encoder.modules() if isinstance(module, VisionTransformer)]
    return [
        model.position(model.config.grid_of(*size), size)
        for model, size in zip(models, sizes, strict=True)
        if model.position is not None
    ]
