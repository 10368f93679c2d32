"""Confidence interval of a success rate."""

from dataclasses import dataclass
from math import sqrt

Z_95 = 1.959963984540054
"""Quantile of a normal distribution for a two-sided interval of 95 %."""


@dataclass(frozen=True)
class SuccessRate:
    """Successes among tries, with the score interval of Wilson (1927), which stays in [0, 1] and fits few tries.

    Raises:
        ValueError: no tries, or more successes than tries.
    """

    successes: int
    tries: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.tries or not self.tries:
            raise ValueError(
                f"{self.successes} successes of {self.tries}: expected at least one try, and at most as many successes"
            )

    @property
    def rate(self) -> float:
        """Successes for each try."""
        return self.successes / self.tries

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval."""
        n, p, z = self.tries, self.rate, Z_95
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, center - half), min(1.0, center + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.1%} [{low:.1%}, {high:.1%}]"
