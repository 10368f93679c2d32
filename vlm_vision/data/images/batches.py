"""From samples to batches of views with a fixed size: the next sample replaces a bad one.

order = StepBatches(len(samples), ...)
images = Images(samples, dino_views(), seed=0)
draws = Draws(order, micro_batches=order.micro_batches, first_step=order.first_step)
for batch in DataLoader(images, batch_sampler=draws, collate_fn=collate, num_workers=8):
    skipped.add(batch)
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vlm_vision.data.sample import LostSampleError, Sample
from vlm_vision.data.seeds import derive_seed
from vlm_vision.data.shards.fetch import UnreachableError
from vlm_vision.data.stored_image import open_stored_images
from vlm_vision.preprocess.images import load_image

log = logging.getLogger(__name__)

MAX_CONSECUTIVE_SKIPS = 1000
"""Consecutive bad samples after which a run stops."""


class Draw(NamedTuple):
    """One image of one step."""

    row: int
    step: int = 0
    copy: int = 0
    """Number among views of the same row in the same step: repeated augmentation."""


class Draws(Sampler[list[Draw]]):
    """The micro-batches of `train.order.StepBatches`, each row with its step, so that its views are new in each epoch and
    independent of micro-batches.

    Args:
        batches: rows of each micro-batch.
        micro_batches: number of them for this process in one step.
        first_step: step of the first one.
        copies: copies of each row, one after another, each with its own views: repeated augmentation (Hoffer et al. 2020,
            "Augment your batch"; 3 in DeiT). Batches grow by it.
    """

    def __init__(self, batches: Sampler[list[int]], *, micro_batches: int, first_step: int = 0, copies: int = 1):
        self.batches, self.micro_batches, self.first_step, self.copies = batches, micro_batches, first_step, copies

    def __iter__(self) -> Iterator[list[Draw]]:
        for index, rows in enumerate(self.batches):
            step = self.first_step + index // self.micro_batches
            yield [Draw(row, step, copy) for row in rows for copy in range(self.copies)]


class Skip(NamedTuple):
    """A sample that was left out, and the reason."""

    name: str
    reason: str


class ImageItem(NamedTuple):
    """One sample of a batch."""

    views: tuple[Tensor, ...]
    caption: str
    label: int
    seed: int
    """Seed of this draw."""
    skipped: tuple[Skip, ...]
    """Bad samples that this one replaces."""
    image: str = ""
    """Name of the image, `str` of its path or location."""


class ImageBatch(NamedTuple):
    """B samples."""

    views: tuple[Tensor, ...]
    """Views, each (B, 3, H, W), in 0..255, uint8 of a `View`."""
    captions: list[str]
    labels: Tensor
    """Labels (B,), int64."""
    seeds: list[int]
    """Seed of each sample in this step, for `mixing.Erase`."""
    skipped: list[Skip]
    images: Sequence[str] = ()
    """Name of each image."""


class ImageDataset(Dataset[ImageItem]):
    """Views of samples, for a DataLoader with any number of workers.

    The next row replaces a sample whose image cannot be decoded or that lacks a part in `needs`; a sample of the next shard
    replaces one of a lost shard.

    Args:
        samples: sequence with random access.
        views: each takes an RGB image and a seed: `View`s, or `Plain`.
        needs: parts that every sample must have.
        seed: seed of the run; view v of a draw has the seed of (seed, step, row, copy, v).
        `alike`: view -> another view with the same seed, so that with the same crop and flip both show the same part.

    Raises:
        ValueError: no sample; on reading, 1000 bad samples in a row, or only bad ones.
        Unreachable: on reading, a shard by URL cannot be fetched now.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        views: Sequence[Callable[[Image.Image, int], Tensor]],
        *,
        needs: tuple[Literal["caption", "label"], ...] = (),
        seed: int = 0,
        alike: Mapping[int, int] = MappingProxyType({}),
    ):
        if not samples:
            raise ValueError("there are no samples: expected at least one")
        self.samples, self.views, self.needs, self.seed = samples, tuple(views), needs, seed
        self.seeds = [alike.get(v, v) for v in range(len(self.views))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw | int) -> ImageItem:
        """The item of a draw; a number is the row at step 0."""
        row, step, copy = Draw(draw) if isinstance(draw, int) else draw
        skipped, taken = [], row
        while len(skipped) < min(len(self.samples), MAX_CONSECUTIVE_SKIPS):
            sample = None
            try:
                sample = self.samples[taken]
                self._check(sample)
                image = load_image(open_stored_images([sample.image])[0])
            except UnreachableError:
                raise
            except (ValueError, OSError) as error:
                skipped.append(Skip((sample and sample.name) or f"sample {taken}", str(error)))
                taken = (taken + (error.ahead if isinstance(error, LostSampleError) else 1)) % len(self.samples)
                continue
            seed = derive_seed(self.seed, step, row, copy)
            views = tuple(
                view(image, derive_seed(self.seed, step, row, copy, v))
                for v, view in zip(self.seeds, self.views, strict=True)
            )
            return ImageItem(views, sample.caption, sample.label, seed, tuple(skipped), str(sample.image))
        name, reason = skipped[0]
        raise ValueError(f"{len(skipped)} samples in a row cannot be used, the first is {name}: {reason}")

    def _check(self, sample: Sample) -> None:
        if "caption" in self.needs and not sample.caption:
            raise ValueError("it has no caption: expected a text")
        if "label" in self.needs and sample.label < 0:
            raise ValueError("it has no label: expected a class")


def collate(items: Sequence[ImageItem]) -> ImageBatch:
    """Items to one batch; views of the same place must be of one size."""
    return ImageBatch(
        tuple(torch.stack(views) for views in zip(*(item.views for item in items), strict=True)),
        [item.caption for item in items],
        torch.tensor([item.label for item in items]),
        [item.seed for item in items],
        [skip for item in items for skip in item.skipped],
        [item.image for item in items],
    )


class Skipped:
    """Number of samples that were skipped in this process; the log names the first."""

    def __init__(self) -> None:
        self.seen, self.bad = 0, 0
        self.first: Skip | None = None

    def add(self, batch: ImageBatch) -> None:
        """Count a batch.

        Raises:
            ValueError: more than a tenth of the first 1000 samples are bad.
        """
        early = self.seen < 1000
        self.seen += len(batch.labels) + len(batch.skipped)
        self.bad += len(batch.skipped)
        if self.first is None and batch.skipped:
            self.first = batch.skipped[0]
            log.warning("skipped %s: %s; others are counted", *self.first)
        if early and self.first and self.bad > max(self.seen, 1000) / 10:
            name, reason = self.first
            raise ValueError(
                f"{self.bad} of the first {self.seen} samples cannot be used, the first is {name}: {reason}; more than a tenth "
                "is too many: repair the data or leave them out"
            )

    def __str__(self) -> str:
        if self.first is None:
            return f"all of {self.seen} samples were used"
        name, reason = self.first
        return f"{self.bad} of {self.seen} samples were skipped, the first is {name}: {reason}"
