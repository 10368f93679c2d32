"""Rows of a store as one batch, padded where their grids differ."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm_vision.tokens.store import Row


@dataclass(frozen=True)
class TokenBatch:
    """Rows side by side. A tensor is None where a row lacks it."""

    keys: list[str]
    grids: Tensor
    """(B, 2), rows and columns of patch tokens."""
    patch_tokens: Tensor | None
    """(B, N, D) of the first layer, N that of the row with most tokens; zeros after the others' tokens."""
    mask: Tensor | None
    """(B, N) bool, True at tokens, False at padding."""
    cls_token: Tensor | None
    """(B, D)"""
    register_tokens: Tensor | None
    """(B, R, D)"""
    pooled: Tensor | None
    """(B, E)"""
    labels: list[int | str | None]
    captions: list[str | None]

    def pin_memory(self) -> "TokenBatch":
        """The batch in page-locked memory, as a DataLoader asks for it."""
        return replace(self, **{name: one.pin_memory() for name, one in vars(self).items() if isinstance(one, Tensor)})


def collate_rows(rows: Sequence[Row]) -> TokenBatch:
    """The batch of some rows: `DataLoader(store, batch_size=32, collate_fn=collate_rows)`.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("there are no rows to collate: expected at least one")
    tokens = [row.patch_tokens for row in rows if row.patch_tokens is not None]
    padded = pad_sequence(tokens, batch_first=True) if len(tokens) == len(rows) else None
    counts = torch.tensor([len(one) for one in tokens])
    return TokenBatch(
        keys=[row.key for row in rows],
        grids=torch.tensor([row.grid for row in rows]),
        patch_tokens=padded,
        mask=None if padded is None else torch.arange(padded.shape[1]) < counts[:, None],
        cls_token=_stacked([row.cls_token for row in rows]),
        register_tokens=_stacked([row.register_tokens for row in rows]),
        pooled=_stacked([row.pooled for row in rows]),
        labels=[row.label for row in rows],
        captions=[row.caption for row in rows],
    )


def _stacked(values: Sequence[Tensor | None]) -> Tensor | None:
    there = [value for value in values if value is not None]
    return torch.stack(there) if len(there) == len(values) else None
