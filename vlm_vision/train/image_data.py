"""Preparation of a recipe that trains on images: the samples, and the batches of each step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from vlm_vision.data.images.batches import Draws, ImageBatch, ImageDataset, collate
from vlm_vision.data.images.samples import read_samples
from vlm_vision.data.sample import Samples
from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.train.loop.batches import batches_of_steps
from vlm_vision.train.loop.prefetch import Prefetcher
from vlm_vision.train.loop.sampler import process_batches
from vlm_vision.train.settings import ImageData, Training


def read_data(data: ImageData) -> tuple[Samples, Samples | None]:
    """Samples to train on, and to measure on, with the classes of the training data.

    Raises:
        ValueError: a source as `read_samples` refuses it, or without the shards that are to be shuffled.
    """
    train = _read(data, data.train, data.train_split)
    if data.shuffle_shards and train.shards is None:
        raise ValueError(f"{data.train} has no shards: leave data.shuffle_shards empty")
    if not data.test:
        return train, None
    test = _read(data, data.test, data.test_split)
    return train, test.with_classes(train.classes) if train.classes else test


def _read(data: ImageData, source: str, split: str) -> Samples:
    cache = ShardCache(data.cache, data.cache_gb)
    return read_samples(
        source, split, images=data.images, shuffle_shards=data.shuffle_shards, cache=cache, classes=data.classes
    )


def image_batches(
    settings: Training,
    accelerator: Accelerator,
    samples: Samples,
    views: Sequence[Callable[[Image.Image, int], Tensor]],
    *,
    first_step: int,
    needs: tuple[Literal["caption", "label"], ...] = (),
    copies: int = 1,
    alike: Mapping[int, int] = MappingProxyType({}),
) -> Iterator[list[ImageBatch]]:
    """This process's micro-batches of each step, from `first_step` on.

    Args:
        views: of every sample.
        needs: what a sample must have; one that lacks it, or cannot be decoded, gives way to the next.
        copies: of every sample, each with views of its own; batches grow by it.
        `alike`: view -> another view of the same part.

    Raises:
        ValueError: fewer samples than batch_size, or a batch that does not divide evenly.
    """
    shards = samples.shards
    sizes = {"shards": shards.sizes, "together": shards.together} if shards else {}
    order = process_batches(settings, accelerator, len(samples), first_step=first_step, **sizes)
    batches = Prefetcher(order, shards.fetch, number=shards.near) if shards and shards.fetch else order
    return batches_of_steps(
        settings,
        accelerator,
        ImageDataset(samples, views, needs=needs, seed=settings.seed, alike=alike),
        Draws(batches, micro_batches=order.micro_batches, first_step=first_step, copies=copies),
        collate,
        steps=range(first_step, settings.steps),
        micro_batches=order.micro_batches,
    )
