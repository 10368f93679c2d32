"""Actions as tokens of a language model (RT-2, Brohan et al. 2023; OpenVLA, Kim et al. 2024).

Each number of an action, normalized to [-1, 1], falls into one of evenly spaced bins; the bins take the place of the
last words of the vocabulary, which are used least.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActionTokens:
    """Encode and decode.

    Args:
        vocab_size: of the tokenizer, without rows that only pad the embedding: 32000 for OpenVLA.
        bins: edges, both ends included; there are `bins` tokens, and `bins` - 1 centers that they decode to.
        low, high: ends of the range; what is outside falls into the outer bins.

    Raises:
        ValueError: fewer words than bins, fewer than two bins, or an empty range.
    """

    vocab_size: int
    bins: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.bins < 2 or self.vocab_size <= self.bins or not self.low < self.high:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, bins {self.bins}, range {self.low} to {self.high}: expected two bins or more, "
                "more words than bins, and a range from low to high"
            )

    def encode(self, actions: Tensor) -> Tensor:
        """(..., D) in [low, high] -> token ids (..., D), int64; compared in float64, as the reference.

        Raises:
            ValueError: NaN or Inf.
        """
        if not actions.isfinite().all():
            raise ValueError(
                f"{int((~actions.isfinite()).sum())} numbers of the actions are NaN or Inf: remove or correct them"
            )
        edges = self._edges(actions.device)
        return self.vocab_size - torch.bucketize(actions.double().clamp(self.low, self.high), edges, right=True)

    def decode(self, ids: Tensor) -> Tensor:
        """Token ids (..., D) -> actions (..., D), float32: the center of each bin. Other words decode as the nearest bin."""
        edges = self._edges(ids.device)
        centers = (edges[:-1] + edges[1:]) / 2
        return centers[(self.vocab_size - ids - 1).clamp(0, self.bins - 2)].float()

    def _edges(self, device: torch.device) -> Tensor:
        """As numpy.linspace, which the reference uses; torch's differ in the last bit."""
        step = (self.high - self.low) / (self.bins - 1)
        edges = torch.arange(self.bins, dtype=torch.float64, device=device) * step + self.low
        edges[-1].fill_(self.high)
        return edges
