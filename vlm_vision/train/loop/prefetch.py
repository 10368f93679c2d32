"""Download of the next shards while the run trains on the present ones."""

import logging
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread

from torch.utils.data import Sampler

from vlm_vision.train.loop.sampler import StepBatches

log = logging.getLogger(__name__)


class Prefetcher(Sampler[list[int]]):
    """The micro-batches of an order, while a thread fetches the shards that it draws from next.

    Args:
        order: with shards in groups.
        fetch: downloads a shard.
        number: shards to keep on disk, those of the present step among them.
    """

    def __init__(self, order: StepBatches, fetch: Callable[[int], None], *, number: int):
        self.order, self.fetch, self.number = order, fetch, number

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[int]]:
        wanted: SimpleQueue[list[int] | None] = SimpleQueue()
        Thread(target=self._work, args=(wanted,), daemon=True).start()
        coming, last = self.order.coming(self.number), None
        try:
            for index, rows in enumerate(self.order):
                if index % self.order.micro_batches == 0 and (shards := next(coming)) != last:
                    wanted.put(shards)
                    last = shards
                yield rows
        finally:
            wanted.put(None)

    def _work(self, wanted: "SimpleQueue[list[int] | None]") -> None:
        while (shards := wanted.get()) is not None:
            for shard in shards:
                if not wanted.empty():
                    break
                try:
                    self.fetch(shard)
                except (ValueError, OSError) as error:  # who wants a sample of it meets the error again, and tells it
                    log.debug("shard %d was not downloaded in advance: %s", shard, error)
