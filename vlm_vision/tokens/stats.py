"""Statistics of the tokens of a store: norms, dead channels, outliers, rank, near duplicates."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm_vision.tokens.store import TokenStore

SAMPLE = 65_536
"""Tokens that statistics are made of, spread evenly over the images."""
MOST_COMPARED = 20_000
"""Images that are compared with each other, the first ones."""
OUTLIER, DEAD = 3.0, 0.01
"""An outlier has more than this times the median norm; a dead channel less than this times the median deviation."""


@dataclass(frozen=True)
class StoreStats:
    """Statistics of one layer."""

    rows: int
    bytes: int
    """Size of all files of the store."""
    channels: int
    sampled: int
    """Tokens that the figures below are of."""
    norms: np.ndarray
    """Euclidean norm of each sampled token."""
    deviations: np.ndarray
    """Standard deviation of each channel."""
    outliers: float
    """Share of tokens whose norm is more than `OUTLIER` times the median (Darcet et al. 2024, arXiv:2309.16588)."""
    dead: int
    """Channels whose deviation is less than `DEAD` times the median."""
    spectrum: np.ndarray
    """Singular values of the centered sample, in descending order."""
    effective_rank: float
    """exp of the entropy of the normalized singular values (Roy and Vetterli 2007)."""
    compared: int
    """Images compared for duplicates, by the cosine of their mean patch tokens, the store's mean taken off."""
    duplicates: list[tuple[float, str, str]]
    """Cosine and keys of the most similar pairs, the most similar first."""

    def text(self) -> str:
        """The figures in lines."""
        low, middle, high = np.quantile(self.norms, [0.05, 0.5, 0.95])
        lines = [
            f"rows              {self.rows:,}",
            f"bytes             {self.bytes:,}",
            f"channels          {self.channels}, {self.dead} dead (deviation below {DEAD:g} of the median)",
            f"token norms       5 % {low:.4g}, median {middle:.4g}, 95 % {high:.4g}, largest {self.norms.max():.4g}",
            f"outlier tokens    {100 * self.outliers:.3f} % (norm above {OUTLIER:g} times the median)",
            f"effective rank    {self.effective_rank:.1f} of {self.channels}",
            f"of                {self.sampled:,} tokens",
            f"nearest pairs     among {self.compared:,} images, by the cosine of their mean tokens",
        ]
        return "\n".join(lines + [f"  {cosine:.4f}        {one} | {other}" for cosine, one, other in self.duplicates])


def measure_store(store: TokenStore, layer: int | None = None, *, pairs: int = 5) -> StoreStats:
    """Measure the patch tokens of a layer, by default the first one stored.

    Raises:
        ValueError: no patch tokens of that layer, or a number that is not finite.
    """
    each = max(1, SAMPLE // len(store))
    sample, means, step = [], [], max(1, len(store) // SAMPLE)
    for row in range(0, len(store), step):
        tokens = store.patch_tokens([row], layer)[0].float()
        if not torch.isfinite(tokens).all():
            raise ValueError(f"patch tokens of {store[row].key} are not finite: the store is damaged, extract it again")
        sample.append(tokens[torch.linspace(0, len(tokens) - 1, min(each, len(tokens))).round().long()])
        if len(means) < MOST_COMPARED:
            means.append(tokens.mean(dim=0))
    tokens = torch.cat(sample)
    norms, deviations = tokens.norm(dim=-1), tokens.std(dim=0, correction=0)
    spectrum = _spectrum(tokens)
    return StoreStats(
        rows=len(store),
        bytes=sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file()),
        channels=tokens.shape[1],
        sampled=len(tokens),
        norms=norms.numpy(),
        deviations=deviations.numpy(),
        outliers=(norms > OUTLIER * norms.median()).float().mean().item(),
        dead=int((deviations < DEAD * deviations.median()).sum()),
        spectrum=spectrum.numpy(),
        effective_rank=_effective_rank(spectrum),
        compared=len(means),
        duplicates=_nearest(torch.stack(means), [store.key(row * step) for row in range(len(means))], pairs),
    )


def _spectrum(tokens: Tensor) -> Tensor:
    centered = tokens.double() - tokens.double().mean(dim=0)
    return torch.linalg.eigvalsh(centered.T @ centered).clamp_min(0).sqrt().flip(0)


def _effective_rank(spectrum: Tensor) -> float:
    shares = spectrum / spectrum.sum().clamp_min(1e-300)
    return torch.exp(torch.special.entr(shares).sum()).item()


def _nearest(means: Tensor, keys: list[str], pairs: int) -> list[tuple[float, str, str]]:
    """The most similar pairs, found block by block."""
    units = torch.nn.functional.normalize(means - means.mean(dim=0), dim=-1)
    best: list[tuple[float, int, int]] = []
    for start in range(0, len(units), 1024):
        cosines = units[start : start + 1024] @ units.T
        rows = torch.arange(start, start + len(cosines))
        cosines[torch.arange(len(units))[None] <= rows[:, None]] = -2  # each pair once
        values, places = cosines.flatten().topk(min(pairs, cosines.numel()))
        best += [
            (value, start + place // len(units), place % len(units))
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
            if value > -2
        ]
    return [(value, keys[one], keys[other]) for value, one, other in sorted(best, reverse=True)[:pairs]]
