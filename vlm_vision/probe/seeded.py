"""Random numbers that depend on a seed alone, so that a probe during a run does not change the run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers on the CPU start from `seed` inside; afterwards the generator has its earlier state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
