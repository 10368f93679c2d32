"""Fewer tokens as words: each square of neighbors becomes a mixture of the words of a visual vocabulary."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from projectors.neighbors import rounded_up_grid, side_by_side
from projectors.projector import Grid, Projector, at_least_one

Choice = Literal["softmax", "argmax"]


class VisualVocabulary(Projector):
    """merge x merge neighbors side by side, a linear map to one logit a word, a norm, and the mean of the words' embeddings
    by the softmax of the logits.

    Ovis (Lu et al. 2024, arXiv:2405.20797). A grid that merge does not divide is filled up with zeros, right and below.

    Args:
        words: how many words can be chosen.
        indicators: more rows of the table, for the begin and the end of an image; no token chooses them.
        merge: side of the square.
        choice: "softmax" mixes the words; "argmax" takes the likeliest, and passes gradients to the mixture.
        eps: of the norm.

    Raises:
        ValueError: a count below 1, an unknown choice.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        words: int = 16384,
        indicators: int = 0,
        merge: int = 1,
        choice: Choice = "softmax",
        eps: float = 1e-5,
    ):
        super().__init__(in_dim, out_dim)
        at_least_one("visual_vocabulary", words=words, merge=merge)
        if choice not in get_args(Choice):
            raise ValueError(f"visual_vocabulary has choice {choice!r}, expected one of {', '.join(get_args(Choice))}")
        self.words, self.indicators, self.merge, self.choice, self.eps = words, indicators, merge, choice, eps
        self.logits = nn.Linear(in_dim * merge * merge, words, bias=False)
        self.norm = nn.LayerNorm(words, eps=eps)
        self.table = nn.Embedding(words + indicators, out_dim)

    @property
    def options(self) -> dict:
        names = ("words", "indicators", "merge", "choice", "eps")
        return {name: getattr(self, name) for name in names}

    def out_grid(self, grid: Grid) -> Grid:
        super().out_grid(grid)
        return rounded_up_grid(grid, self.merge)

    def flops(self, grid: Grid) -> int:
        return 2 * self.num_tokens(grid) * self.words * (self.logits.in_features + self.out_dim)

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        rows, columns = out = self.out_grid(grid)
        missing = (0, 0, 0, columns * self.merge - grid[1], 0, rows * self.merge - grid[0])
        x = F.pad(tokens.unflatten(1, grid), missing).flatten(1, 2)
        shares = self.norm(self.logits(side_by_side(x, out, self.merge))).softmax(dim=-1)
        if self.choice == "argmax":
            likeliest = F.one_hot(shares.argmax(dim=-1), self.words).to(shares)
            shares = likeliest - shares.detach() + shares
        return shares @ self.table.weight[: self.words]
