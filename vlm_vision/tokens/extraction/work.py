"""Images of a shard to tokens: decoding, preprocessing and the forward overlap, results come in the order of the images.

On the CPU each batch is one task of one thread, from the file to the tokens, and many run side by side: operations use one thread
each, so that the numbers do not depend on how many cores there are. On an accelerator threads make pixels, and its
results are copied back while it computes the next batch.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from vlm_vision.nn.output import VisionOutput
from vlm_vision.tokens.extraction.encode import ImageTokens, TokenEncoder
from vlm_vision.tokens.source import Opened

Encoded = ImageTokens | ValueError
"""What is stored of an image, or why it cannot be read."""
T = TypeVar("T")


def default_workers() -> int:
    """Threads of one process: the cores that it may use, shared among the processes of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Operations on the CPU use one thread; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threads(workers: int) -> ThreadPoolExecutor:
    """A pool of threads whose operations use one thread each; oneDNN, called first in a new thread, would take all cores."""
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def encode_in_order(
    tokens: TokenEncoder, opened: Iterable[Opened], pool: ThreadPoolExecutor, workers: int
) -> Iterator[list[Encoded]]:
    """Batches of what the images give, in order. `opened` is read by this thread, a few batches ahead."""
    batches = _batches(opened, tokens.wanted.batch_size)
    if tokens.encoder.device.type == "cpu":
        yield from _in_order(pool, (_task(_encoded, tokens, batch) for batch in batches), workers + 1)
        return
    before: list[VisionOutput | ValueError] = []
    for pixels in _in_order(pool, (_task(_pixels, tokens, batch) for batch in batches), 2 * workers):
        outputs = _forward(tokens, pixels)  # begins on the accelerator, which the copy of the batch before waits for
        if before:
            yield _stored(tokens, before)
        before = outputs
    if before:
        yield _stored(tokens, before)


def _task(
    work: Callable[[TokenEncoder, list[Opened]], T], tokens: TokenEncoder, batch: list[Opened]
) -> Callable[[], T]:
    return lambda: work(tokens, batch)


def _batches(opened: Iterable[Opened], size: int) -> Iterator[list[Opened]]:
    opened = iter(opened)
    while batch := list(islice(opened, size)):
        yield batch


def _in_order(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    pending: deque[Future[T]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _encoded(tokens: TokenEncoder, opened: Sequence[Opened]) -> list[Encoded]:
    return _stored(tokens, _forward(tokens, _pixels(tokens, opened)))


def _pixels(tokens: TokenEncoder, opened: Sequence[Opened]) -> list[Tensor | ValueError]:
    pixels: list[Tensor | ValueError] = []
    for image in opened:
        try:
            pixels.append(image if isinstance(image, ValueError) else tokens.pixels(image))
        except ValueError as error:
            pixels.append(error)
    return pixels


@torch.inference_mode()
def _forward(tokens: TokenEncoder, pixels: Sequence[Tensor | ValueError]) -> list[VisionOutput | ValueError]:
    """Outputs in order; where a batch is refused, each image alone, so that only those at fault fail."""
    good = [one for one in pixels if isinstance(one, Tensor)]
    try:
        outputs: list[VisionOutput | ValueError] = [*tokens.outputs(good)] if good else []
    except ValueError:
        outputs = [_alone(tokens, one) for one in good]
    left = iter(outputs)
    return [one if isinstance(one, ValueError) else next(left) for one in pixels]


def _alone(tokens: TokenEncoder, pixels: Tensor) -> VisionOutput | ValueError:
    try:
        return tokens.outputs([pixels])[0]
    except ValueError as error:
        return error


@torch.inference_mode()
def _stored(tokens: TokenEncoder, outputs: Sequence[VisionOutput | ValueError]) -> list[Encoded]:
    stored: list[Encoded] = []
    for out in outputs:
        try:
            stored.append(out if isinstance(out, ValueError) else tokens.stored(out))
        except ValueError as error:
            stored.append(error)
    return stored
