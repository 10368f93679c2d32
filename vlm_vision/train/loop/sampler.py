"""The order of records: a function of the seed alone, so that a run can stop and resume at any step."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import Sampler

from vlm_vision.train.settings import Training


class StepBatches(Sampler[list[int]]):
    """Micro-batches of record indices, from a given step on, for one of several processes.

    Epoch e is the permutation of seed + e; the last, incomplete batch of an epoch is left out. A step's `batch_size`
    records are cut into `micro_batch_size` pieces; process r of n takes pieces r, r + n, ... so that the union over
    processes and pieces is the same batch whatever n is.

    Where records lie in shards, an epoch may be a permutation of the shards, cut into groups of `together`, and a permutation
    of the records of each group: then no more than a group of shards, or two, is drawn from at a time.

    Args:
        num_records: in the data set.
        batch_size: records per optimizer step, over all processes.
        micro_batch_size: records per forward pass.
        steps: optimizer steps in all.
        first_step: where to begin.
        seed: of the order.
        rank, world_size: this process and their number.
        shards: records of each shard, one shard after another.
        together: shards in a group; 0: there are no groups.

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
        shards: Sequence[int] = (),
        together: int = 0,
    ):
        if batch_size > num_records:
            raise ValueError(f"batch_size {batch_size} is larger than the data set of {num_records} records: lower it")
        if batch_size % (micro_batch_size * world_size):
            raise ValueError(
                f"batch_size {batch_size} is no multiple of micro_batch_size {micro_batch_size} x {world_size} processes: change one"
            )
        self.num_records, self.batch_size, self.micro_batch_size = num_records, batch_size, micro_batch_size
        self.steps, self.first_step, self.seed, self.rank, self.world_size = steps, first_step, seed, rank, world_size
        self.shards, self.together = shards, together

    @property
    def micro_batches(self) -> int:
        """Forward passes per optimizer step in one process."""
        return self.batch_size // (self.micro_batch_size * self.world_size)

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.num_records // self.batch_size
        epoch, records = -1, iter(())
        for step in range(self.first_step, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                records = self._records(epoch, step % per_epoch * self.batch_size)
            batch = list(islice(records, self.batch_size))
            pieces = [batch[i : i + self.micro_batch_size] for i in range(0, self.batch_size, self.micro_batch_size)]
            yield from pieces[self.rank :: self.world_size]

    def _records(self, epoch: int, start: int) -> Iterator[int]:
        """The order of an epoch from a place on."""
        if not self.together:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            yield from torch.randperm(self.num_records, generator=generator)[start:].tolist()
            return
        ends = list(accumulate(self.shards))
        for group in self._groups(epoch):
            if start < group.size:
                held = torch.cat(
                    [torch.arange(ends[shard] - self.shards[shard], ends[shard]) for shard in group.shards]
                )
                order = torch.randperm(group.size, generator=torch.Generator().manual_seed(group.seed))
                yield from held[order[start:]].tolist()
            start = max(0, start - group.size)

    def _groups(self, epoch: int) -> list["_Group"]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = [
            shard for shard in torch.randperm(len(self.shards), generator=generator).tolist() if self.shards[shard]
        ]
        cut = [order[i : i + self.together] for i in range(0, len(order), self.together)]
        seeds = torch.randint(2**63 - 1, (len(cut),), generator=generator).tolist()
        return [
            _Group(shards, sum(self.shards[one] for one in shards), seed)
            for shards, seed in zip(cut, seeds, strict=True)
        ]

    def coming(self, number: int) -> Iterator[list[int]]:
        """For every step, the next shards that it and those after it draw from, `number` of them or all of two epochs."""
        per_epoch = self.num_records // self.batch_size
        epoch, ends, order = -1, [], []
        for step in range(self.first_step, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                now, then = self._groups(epoch), self._groups(epoch + 1)
                ends = list(accumulate(group.size for group in now))
                order = [shard for group in (*now, *then) for shard in group.shards]
            group = bisect_right(ends, step % per_epoch * self.batch_size)
            start = group * self.together
            yield list(dict.fromkeys(order[start : start + number]))


class _Group(NamedTuple):
    """Shards that are shuffled together."""

    shards: list[int]
    size: int
    """Records in them."""
    seed: int


def process_batches(
    settings: Training, accelerator: Accelerator, length: int, *, first_step: int, **shards: Any
) -> StepBatches:
    """The order of a run's samples, of which this process takes its part.

    Args:
        length: samples there are.
        shards: `shards` and `together` of `StepBatches`, where there are any.
    """
    return StepBatches(
        length,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        steps=settings.steps,
        first_step=first_step,
        seed=settings.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        **shards,
    )
