"""Chance that is a function of a seed and touches nobody else's: a probe in the middle of a run leaves the run as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU inside begin at `seed`; afterwards the generator goes on where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
