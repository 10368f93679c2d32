"""Encoders side by side: cost, time on this machine, and the similarity of their layers."""

import time
from collections.abc import Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlm_vision.encoder import Encoder, eval_mode
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.rope import Grid

_SIDE = 8
"""Most rows and columns to which patch tokens are averaged before layers are compared."""


def flops(encoder: Encoder | FusedEncoder, pixels: Tensor) -> int:
    """Operations of one forward pass, as PyTorch counts them: a multiply-add as two."""
    with (
        torch.enable_grad(),
        eval_mode(encoder),
        FlopCounterMode(display=False) as counted,
    ):  # it counts no fused kernels
        encoder(pixels)
    return counted.get_total_flops()


def milliseconds(encoder: Encoder | FusedEncoder, pixels: Tensor, runs: int = 3) -> float:
    """Median time of a forward pass, after one to warm up; of fewer runs where they take seconds."""
    taken: list[float] = []
    with torch.no_grad(), eval_mode(encoder):
        for _ in range(runs + 1):
            start = time.perf_counter()
            encoder(pixels)
            if pixels.is_cuda:
                torch.cuda.synchronize(pixels.device)
            taken.append(1000 * (time.perf_counter() - start))
            if len(taken) > 1 and sum(taken) > 2000:
                break
    return median(taken[1:])


def places(tokens: Tensor, grid: Grid) -> Tensor:
    """Patch tokens (N, D) averaged on a common grid of `_SIDE` rows and columns: (places, D)."""
    image = tokens.T.unflatten(1, grid)[None]
    return F.adaptive_avg_pool2d(image, (_SIDE, _SIDE))[0].flatten(1).T


def similarity(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Linear centered kernel alignment (Kornblith et al. 2019, arXiv:1905.00414) of each pair: (len(features), len(others)).

    Args:
        features, others: (n, D) each, rows for the same n places; D may differ.
    """
    ours, theirs = (torch.stack([_kernel(one) for one in group]) for group in (features, others))
    return ours @ theirs.T


def _kernel(features: Tensor) -> Tensor:
    """The centered Gram matrix, flattened, of length one."""
    centered = (features - features.mean(dim=0)).double()
    return F.normalize((centered @ centered.T).flatten(), dim=0)
