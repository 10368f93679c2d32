"""Statistics in LeRobot's layout, but exact: over every row and every pixel, quantiles by linear interpolation.

LeRobot itself samples images and computes quantiles from histograms of 5000 bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

JsonStatistics = dict[str, Any]
"""Name of the statistic -> nested lists, as stats.json holds them."""


def of_numbers(parts: Sequence[np.ndarray]) -> JsonStatistics:
    """Statistics of the rows (n, *shape) of all parts, over the axes that LeRobot uses; std over n."""
    found: dict[str, list[Any]] = {name: [] for name in ("min", "max", "mean", "std", *QUANTILES)}
    flat = [part.reshape(-1, part.shape[-1]) for part in parts]
    for i in range(flat[0].shape[1]):  # one dimension at a time, which is what float64 needs room for
        column = np.concatenate([part[:, i] for part in flat])
        values = column.astype(np.float64)
        quantiles = np.quantile(values, list(QUANTILES.values())).tolist()
        row = (column.min().item(), column.max().item(), float(values.mean()), float(values.std()), *quantiles)
        for name, value in zip(found, row, strict=True):
            found[name].append(value)
    return _with_count(found, sum(len(part) for part in parts))


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """Histogram of the 256 values of each channel, from which all statistics of images follow."""

    counts: np.ndarray
    """Counts (3, 256), int64."""
    images: int

    @classmethod
    def none(cls) -> "PixelCounts":
        return cls(np.zeros((3, 256), np.int64), 0)

    @classmethod
    def of(cls, image: np.ndarray) -> "PixelCounts":
        """Histogram of one uint8 (H, W, 3)."""
        return cls(np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]), 1)

    def __add__(self, other: "PixelCounts") -> "PixelCounts":
        return PixelCounts(self.counts + other.counts, self.images + other.images)

    def to_json(self) -> JsonStatistics:
        """Statistics of values in [0, 1], each (3, 1, 1)."""
        values, pixels = np.arange(256) / 255, int(self.counts[0].sum())
        mean = self.counts @ values / pixels
        std = np.sqrt((self.counts * (values - mean[:, None]) ** 2).sum(1) / pixels)
        seen = self.counts > 0
        found = {"min": values[seen.argmax(1)], "max": values[255 - seen[:, ::-1].argmax(1)], "mean": mean, "std": std}
        upto = self.counts.cumsum(1)
        for name, q in QUANTILES.items():
            place = q * (pixels - 1)
            around = (math.floor(place), math.ceil(place))
            low, high = ([int(np.searchsorted(row, at, side="right")) for row in upto] for at in around)
            found[name] = values[low] + (values[high] - values[low]) * (place - around[0])
        return _with_count({name: value.reshape(3, 1, 1).tolist() for name, value in found.items()}, self.images)


def _with_count(found: dict[str, list[Any]], rows: int) -> JsonStatistics:
    """In LeRobot's order."""
    first = ("min", "max", "mean", "std")
    return {n: found[n] for n in first} | {"count": [rows]} | {name: found[name] for name in QUANTILES}
