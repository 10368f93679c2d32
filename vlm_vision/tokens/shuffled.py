"""Rows of a store in random order, for training from a disk that reads fast only where it has just read."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from vlm_vision.tokens.store import Row, TokenStore


class ShuffledRows(IterableDataset[Row]):
    """Rows of a store in a random order that reads few shards at a time. Workers of a DataLoader share the windows out.

    Args:
        store: to read.
        seed, epoch: of the order.
        window: shards whose rows are shuffled together.
    """

    def __init__(self, store: TokenStore, *, seed: int, window: int = 4, epoch: int = 0):
        if window < 1:
            raise ValueError(f"window is {window}: expected at least 1 shard")
        self.store, self.seed, self.window, self.epoch = store, seed, window, epoch

    def __len__(self) -> int:
        return len(self.store)

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        share, shares = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, rows in enumerate(self.order()):
            if number % shares == share:
                for row in rows:
                    yield self.store[int(row)]

    def order(self) -> Iterator[np.ndarray]:
        """Numbers of the rows of each window, in the order of reading."""
        draw = np.random.default_rng([self.seed, self.epoch])
        shard = self.store.shard_numbers()
        found = np.unique(shard, return_index=True, return_counts=True)
        numbers, starts, counts = (column.tolist() for column in found)
        shuffled = draw.permutation(len(numbers))
        for start in range(0, len(shuffled), self.window):
            chosen = shuffled[start : start + self.window]
            yield draw.permutation(
                np.concatenate([np.arange(starts[i], starts[i] + counts[i]) for i in chosen.tolist()])
            )
