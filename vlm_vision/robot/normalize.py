"""Normalization of actions and states by statistics of the data."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vlm_vision.robot.statistics import Statistics

Kind = Literal["quantiles", "mean_std", "min_max"]
_NEEDS = {"quantiles": ("q01", "q99"), "mean_std": ("mean", "std"), "min_max": ("min", "max")}


@dataclass(frozen=True)
class Normalizer:
    """One kind of normalization by one set of statistics.

    quantiles: 2 (x - q01) / (q99 - q01 + eps) - 1, clipped to [-1, 1] (OpenVLA, Kim et al. 2024; pi0.5)
    min_max: the same with min and max (OpenVLA-OFT for absolute joints)
    mean_std: (x - mean) / (std + eps) (pi0, LeRobot)

    A number that never changes in the data (min == max) becomes 0, and the constant again. Where the statistics have a
    mask that is False, numbers pass as they are.

    Raises:
        ValueError: statistics without what the kind needs.
    """

    kind: Kind
    statistics: Statistics
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.kind not in _NEEDS:
            raise ValueError(f"normalization {self.kind!r} is not known: expected one of {', '.join(_NEEDS)}")
        if lacking := [name for name in _NEEDS[self.kind] if getattr(self.statistics, name) is None]:
            raise ValueError(
                f"normalization {self.kind!r} needs {' and '.join(lacking)}, which the statistics lack: "
                "choose another kind, or compute them from the data"
            )

    @property
    def dim(self) -> int:
        return self.statistics.dim

    def __call__(self, values: Tensor) -> Tensor:
        """(..., D) in the robot's units -> the network's, float32. Raises ValueError for another D, NaN or Inf."""
        given = self._checked(values)
        low, span = self._low_and_span(given)
        if self.kind == "mean_std":
            found = (given - low) / (span + self.eps)
        else:
            found = (2 * (given - low) / (span + self.eps) - 1).clamp(-1, 1)
        return torch.where(self._mask(given), torch.where(self._constant(given), 0.0, found), given).float()

    def invert(self, values: Tensor) -> Tensor:
        """(..., D) of a network -> the robot's units, float32. Raises ValueError for another D, NaN or Inf."""
        given = self._checked(values)
        low, span = self._low_and_span(given)
        found = given * span + low if self.kind == "mean_std" else 0.5 * (given + 1) * span + low
        return torch.where(self._mask(given), found, given).float()

    def _checked(self, values: Tensor) -> Tensor:
        if values.shape[-1:] != (self.dim,):
            raise ValueError(
                f"the numbers have shape {tuple(values.shape)} but the statistics have {self.dim} dimensions: pass the statistics of "
                "this robot and feature"
            )
        if not values.isfinite().all():
            raise ValueError(
                f"{int((~values.isfinite()).sum())} of {values.numel()} numbers are NaN or Inf: remove or correct them"
            )
        return values.double()

    def _low_and_span(self, like: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (self._tensor(getattr(self.statistics, name), like) for name in _NEEDS[self.kind])
        return first, second if self.kind == "mean_std" else second - first

    def _mask(self, like: Tensor) -> Tensor:
        mask = self.statistics.mask
        return torch.ones_like(like, dtype=torch.bool) if mask is None else torch.from_numpy(mask).to(like.device)

    def _constant(self, like: Tensor) -> Tensor:
        low, high = self.statistics.min, self.statistics.max
        if low is None or high is None:
            return torch.zeros_like(like, dtype=torch.bool)
        return self._tensor(low, like) == self._tensor(high, like)

    @staticmethod
    def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
        return torch.from_numpy(values).to(like)
