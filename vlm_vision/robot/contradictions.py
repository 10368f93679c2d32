"""Statistics compared with the numbers that they are said to describe."""

import numpy as np

from vlm_vision.robot.statistics import Statistics

OUTSIDE = 0.04
"""Largest share of numbers outside q01..q99; exact quantiles leave out 0.02."""


def contradictions(stored: Statistics, values: np.ndarray, rows: int | None = None) -> list[str]:
    """What the numbers (n, D) contradict in stored statistics, one phrase each.

    Args:
        rows: number of rows of the whole data set, which `stored.count` should be; None if unknown.
    """
    if stored.dim != values.shape[1]:
        return [f"statistics of {stored.dim} dimensions for numbers of {values.shape[1]}"]
    found = [f"count {stored.count} for {rows} rows"] if rows and stored.count and stored.count != rows else []
    for i in range(stored.dim):
        column = values[:, i].astype(np.float64)
        least, most = float(column.min()), float(column.max())
        known = {name: float(of[i]) for name in _FIELDS if (of := getattr(stored, name)) is not None}
        found += [f"dimension {i}: {problem}" for problem in _of_dimension(known, column, least, most)]
    return found


_FIELDS = ("mean", "std", "min", "max", "q01", "q99")


def _of_dimension(known: dict[str, float], column: np.ndarray, least: float, most: float) -> list[str]:
    found = []
    slack = 1e-3 * (most - least) + 1e-6 * max(abs(least), abs(most), 1e-6)
    varies = most > least
    if "min" in known and known["min"] > least + slack:
        found.append(f"min {known['min']:.4g}, and the data reach down to {least:.4g}")
    if "max" in known and known["max"] < most - slack:
        found.append(f"max {known['max']:.4g}, and the data reach up to {most:.4g}")
    if "mean" in known and not least - slack <= known["mean"] <= most + slack:
        found.append(f"mean {known['mean']:.4g}, and the data lie in {least:.4g} to {most:.4g}")
    if varies and known.get("std") == 0:
        found.append("std 0, and the data vary")
    if known.get("std", 0) < 0:
        found.append(f"std {known['std']:.4g}, below 0")
    if "q01" in known and "q99" in known:
        low, high = known["q01"], known["q99"]
        outside = float(((column < low - slack) | (column > high + slack)).mean())
        if low > high:
            found.append(f"q01 {low:.4g} above q99 {high:.4g}")
        elif low == high and varies and float((column != low).mean()) > OUTSIDE:
            found.append(f"q01 and q99 are both {low:.4g}, and the data vary")
        elif outside > OUTSIDE and (outside * len(column)) > 3:
            found.append(f"q01 {low:.4g} to q99 {high:.4g} leave out {outside:.0%} of the data")
    return found
