"""Retrieval: rank of the right text for an image, of the right image for a text, or of a drawing in another style."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AT = (1, 5, 10)


@dataclass(frozen=True)
class Ranking:
    """Ranks of the first right items."""

    recall: dict[int, float]
    """Share of queries, from 0 to 1, with a right item among the first k."""
    chance: dict[int, float]
    """Expected recall of a random order."""
    median_rank: float
    """Median of the ranks, 1 for the best; the lower of two in the middle."""


@dataclass(frozen=True)
class Retrieval:
    """Both ways."""

    image_to_text: Ranking
    text_to_image: Ranking


def retrieval(
    images: Tensor, texts: Tensor, image_of_text: Tensor | None = None, *, at: Sequence[int] = AT
) -> Retrieval:
    """Rank texts for each image, of which any of its own is right, and images for each text.

    Args:
        images: (I, E), of length one.
        texts: (T, E), of length one.
        image_of_text: (T,), the row of each text's image; default row i is that of text i.
        at: numbers of first items.

    Raises:
        ValueError: as `ranking`; also an image without a text.
    """
    own = torch.arange(len(images), device=images.device)
    owner = torch.arange(len(texts), device=images.device) if image_of_text is None else image_of_text
    return Retrieval(
        image_to_text=ranking(images, texts, own, owner, at=at), text_to_image=ranking(texts, images, owner, own, at=at)
    )


@torch.no_grad()
def ranking(
    queries: Tensor,
    items: Tensor,
    name_of_query: Tensor,
    name_of_item: Tensor,
    *,
    at: Sequence[int] = AT,
    chunk_size: int = 1024,
) -> Ranking:
    """Rank items by their inner product with each query; those of the query's name are right.

    The rank of a query is one more than the wrong items that are at least as similar as its most similar right one. So ties
    count against the encoder: one that gives everything the same vector finds nothing.

    Args:
        queries, items: (Q, E) and (G, E).
        name_of_query, name_of_item: (Q,) and (G,), whole numbers.
        chunk_size: queries at a time.

    Raises:
        ValueError: names that are not as many as their rows, or a query without a right item.
    """
    if len(queries) != len(name_of_query) or len(items) != len(name_of_item) or not len(queries):
        raise ValueError(
            f"there are {len(queries)} queries and {len(items)} items, with {len(name_of_query)} and {len(name_of_item)} "
            "names: expected a name for each, and at least one query"
        )
    ranks, rights = [], []
    for rows, names in zip(queries.split(chunk_size), name_of_query.split(chunk_size), strict=True):
        similarity = rows @ items.T
        right = names[:, None] == name_of_item
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + ((similarity >= best) & ~right).sum(dim=1))
        rights.append(right.sum(dim=1))
    rank, right = torch.cat(ranks), torch.cat(rights)
    if not right.all():
        row = int((right == 0).nonzero()[0])
        raise ValueError(
            f"query {row} of name {int(name_of_query[row])} has no right item: remove the query, or add the item"
        )
    return Ranking(
        recall={k: (rank <= k).double().mean().item() for k in at},
        chance={k: _chance(right, len(items), k) for k in at},
        median_rank=rank.median().item(),
    )


def _chance(right: Tensor, items: int, k: int) -> float:
    """Mean probability that the first k of a random order hold one of the `right` ones: 1 - C(G - r, k) / C(G, k)."""
    missed = torch.ones_like(right, dtype=torch.float64)
    for drawn in range(min(k, items)):
        missed *= ((items - right - drawn) / (items - drawn)).clamp(min=0)
    return (1 - missed).mean().item()
