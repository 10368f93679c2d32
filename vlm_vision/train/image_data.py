"""What a recipe on images needs before its loop: where they come from, and the batches of each step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from vlm_vision.data.images.batches import Draws, ImageBatch, ImageDataset, collate
from vlm_vision.data.images.samples import read_samples
from vlm_vision.data.sample import Samples
from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.train.loop.prefetch import Prefetcher
from vlm_vision.train.loop.sampler import own_batches
from vlm_vision.train.settings import Training


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Where images come from; sources as `vlm_vision.data.images.samples.read_samples` takes them."""

    train: str
    """A folder, a .csv or .jsonl file, .tar shards, here or by URL, or hf:owner/name."""
    test: str = ""
    """The same, to be measured on; empty for none."""
    images: str = ""
    """Folder that image paths start from; empty for that of the file."""
    train_split: str = "train"
    test_split: str = "test"
    classes: int = 0
    """How many classes the labels of shards by URL have; 0: their labels are not read."""
    shuffle_shards: int | None = None
    """Shards that are shuffled together, 0 for all; empty for 16 of shards by URL, and all of others."""
    cache: str = ShardCache.folder
    """Folder for shards by URL, on a disk of each machine."""
    cache_gb: float = ShardCache.gb
    """What they may fill, in 10^9 bytes: best twice `shuffle_shards` of them, so that the next ones come meanwhile."""

    def __post_init__(self):
        if self.classes < 0 or (self.shuffle_shards or 0) < 0:
            raise ValueError(
                f"data.classes is {self.classes}, data.shuffle_shards {self.shuffle_shards}: expected 0 or more"
            )
        ShardCache(self.cache, self.cache_gb)


def read_data(data: ImageData) -> tuple[Samples, Samples | None]:
    """Samples to train on and to be measured on; where they have classes, those of the former.

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


def batches_of_steps(
    settings: Training,
    accelerator: Accelerator,
    samples: Samples,
    views: Sequence[Callable[[Image.Image, int], Tensor]],
    *,
    first_step: int,
    needs: tuple[Literal["caption", "label"], ...] = (),
    copies: int = 1,
    alike: Mapping[int, int] = MappingProxyType({}),
) -> tuple[Iterable[ImageBatch], int]:
    """This process's micro-batches from `first_step` on, and how many of them a step has.

    Args:
        views: of every sample.
        needs: what a sample must have; one that lacks it, or cannot be decoded, gives way to the next.
        copies: of every sample, each with views of its own; batches grow by it.
        alike: view -> another one that shows the same part.

    Raises:
        ValueError: fewer samples than batch_size, or a batch that does not divide evenly.
    """
    shards = samples.shards
    sizes = {"shards": shards.sizes, "together": shards.together} if shards else {}
    order = own_batches(settings, accelerator, len(samples), first_step=first_step, **sizes)
    batches = Prefetcher(order, shards.fetch, number=shards.near) if shards and shards.fetch else order
    loader = DataLoader(
        ImageDataset(samples, views, needs=needs, seed=settings.seed, alike=alike),
        batch_sampler=Draws(batches, micro_batches=order.micro_batches, first_step=first_step, copies=copies),
        collate_fn=collate,
        num_workers=settings.workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # its own: the global one was just restored, and must not be drawn from
    )
    return loader, order.micro_batches
