"""The order in which records are seen: a function of the seed alone, so that a run can stop and go on anywhere."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class StepBatches(Sampler[list[int]]):
    """Micro-batches of record indices, from a given step on, for one of several processes.

    Epoch e is the permutation of seed + e; the last, incomplete batch of an epoch is left out. A step's `batch_size`
    records are cut into `micro_batch_size` pieces; process r of n takes pieces r, r + n, ... so that the union over
    processes and pieces is the same batch whatever n is.

    Args:
        num_records: in the data set.
        batch_size: records per optimiser step, over all processes.
        micro_batch_size: records per forward pass.
        steps: optimiser steps in all.
        first_step: where to begin.
        seed: of the order.
        rank, world_size: this process and their number.

    Raises:
        ValueError: fewer records than batch_size, or a batch that does not divide evenly.
    """

    def __init__(
        self,
        num_records: int,
        *,
        batch_size: int,
        micro_batch_size: int,
        steps: int,
        first_step: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size > num_records:
            raise ValueError(f"batch_size {batch_size} is larger than the data set of {num_records} records: lower it")
        if batch_size % (micro_batch_size * world_size):
            raise ValueError(
                f"batch_size {batch_size} is no multiple of micro_batch_size {micro_batch_size} x {world_size} processes: change one"
            )
        self.num_records, self.batch_size, self.micro_batch_size = num_records, batch_size, micro_batch_size
        self.steps, self.first_step, self.seed, self.rank, self.world_size = steps, first_step, seed, rank, world_size

    @property
    def micro_batches(self) -> int:
        """Forward passes per optimiser step in one process."""
        return self.batch_size // (self.micro_batch_size * self.world_size)

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.num_records // self.batch_size
        epoch, order = -1, []
        for step in range(self.first_step, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(
                    self.num_records, generator=torch.Generator().manual_seed(self.seed + epoch)
                ).tolist()
            start = step % per_epoch * self.batch_size
            pieces = [
                order[i : i + self.micro_batch_size]
                for i in range(start, start + self.batch_size, self.micro_batch_size)
            ]
            yield from pieces[self.rank :: self.world_size]
