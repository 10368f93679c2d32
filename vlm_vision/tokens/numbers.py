"""Numbers on disk: float32 to the store's dtype and back, and the loss."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vlm_vision.tokens.wanted import DTYPES

SCALE = ".scale"
"""Suffix of the tensor of scales of one in int8."""


def to_disk(name: str, value: Tensor, dtype: str) -> dict[str, Tensor]:
    """A tensor (..., D) under its name, in the dtype; in int8 with its scales (...), the largest magnitude of each token / 127.

    Raises:
        ValueError: values that are not finite, before or in that dtype.
    """
    if dtype == "int8":
        scale = value.abs().amax(dim=-1) / 127
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        _check_finite(scale, name, dtype)
        return {name: (value / scale[..., None]).round().to(torch.int8), name + SCALE: scale}
    stored = value.to(DTYPES[dtype])
    _check_finite(stored, name, dtype)
    return {name: stored}


def from_disk(stored: Tensor, scale: Tensor | None) -> Tensor:
    """The tokens: as stored, or float32 of int8 and its scales."""
    return stored if scale is None else stored.float() * scale[..., None]


class Loss:
    """The difference between stored numbers and float32, summed up over images."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, exact: Mapping[str, Tensor], dtype: str) -> None:
        """Count the tensors of one image."""
        for name, value in exact.items():
            disk = to_disk(name, value, dtype)
            error = (from_disk(disk[name], disk.get(name + SCALE)).double() - value.double()).abs()
            sums = self._sums.setdefault(name, [0.0, 0.0, 0.0, 0.0])
            sums[0] = max(sums[0], error.max().item())
            sums[1] += error.square().sum().item()
            sums[2] += value.double().square().sum().item()
            sums[3] = max(sums[3], value.abs().max().item())

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Tensor -> `largest_error`, `largest_value`, and `relative_error`, the root of mean squares over that of the values."""
        return {
            name: {
                "largest_error": largest,
                "largest_value": most,
                "relative_error": (squares / of) ** 0.5 if of else 0.0,
            }
            for name, (largest, squares, of, most) in self._sums.items()
        }


def _check_finite(value: Tensor, name: str, dtype: str) -> None:
    if not torch.isfinite(value).all():
        raise ValueError(
            f"{name} is not finite in {dtype}: store it in float32 or bfloat16, or check the encoder for damaged weights"
        )
