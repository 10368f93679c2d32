"""The record of all sources for pretraining, and sequences of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from vlm_vision.data.stored_image import ImageSource


@dataclass(frozen=True)
class Sample:
    """An image with its caption and label."""

    image: ImageSource
    caption: str = ""
    """Caption; empty for none."""
    label: int = -1
    """Index of its class in `Samples.classes`; -1 for none."""
    name: str = ""
    """Name of the sample in an error."""


class LostSampleError(ValueError):
    """A sample that is missing, with those after it: the one `ahead` rows later replaces it."""

    def __init__(self, sentence: str, ahead: int):
        super().__init__(sentence)
        self.ahead = ahead


@dataclass(frozen=True)
class Shards:
    """Distribution of samples over shards, one shard after another."""

    sizes: tuple[int, ...]
    """Samples of each shard."""
    together: int = 0
    """Number of shards that are shuffled together; 0 for all."""
    fetch: Callable[[int], None] | None = None
    """Function that fetches a shard by its number; None for local shards."""
    near: int = 0
    """Number of shards to fetch ahead."""

    def cut(self, start: int, stop: int) -> "Shards":
        """The shards of the rows from `start` to `stop`; shards without rows keep their numbers."""
        ends = np.clip(np.cumsum([0, *self.sizes]), start, max(start, stop))
        return replace(self, sizes=tuple(np.diff(ends).tolist()))


class Samples(Sequence[Sample]):
    """Samples that are made at access: of shards and data sets only offsets are in memory.

    A slice is also such a sequence. Pickles with its `make`, for the workers of a DataLoader.

    Args:
        make: row -> its sample.
        rows: the rows, in order.
        classes: names of the labels, in order; empty where there are none.
        shards: distribution of the rows over shards, if any.
    """

    def __init__(
        self,
        make: Callable[[int], Sample],
        rows: Sequence[int],
        classes: tuple[str, ...] = (),
        shards: Shards | None = None,
    ):
        self.make, self.rows, self.classes, self.shards = make, rows, classes, shards

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            shards = self.shards.cut(start, stop) if self.shards and step == 1 else None
            return Samples(self.make, self.rows[index], self.classes, shards)
        return self.make(self.rows[index])

    def with_classes(self, classes: tuple[str, ...]) -> "Samples":
        """The same samples with labels as indices of `classes`: a test split with the classes of its training split.

        Raises:
            ValueError: `classes` lacks one of their classes.
        """
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise ValueError(
                f"class {unknown[0]!r} is not one of the {len(classes)} expected classes: use splits of one data set"
            )
        make = _WithLabels(self.make, tuple(map(classes.index, self.classes)))
        return Samples(make, self.rows, classes, self.shards)


@dataclass(frozen=True)
class _WithLabels:
    make: Callable[[int], Sample]
    labels: tuple[int, ...]

    def __call__(self, row: int) -> Sample:
        sample = self.make(row)
        return sample if sample.label < 0 else replace(sample, label=self.labels[sample.label])


def caption_of(value: Any) -> str:
    """A caption, the first of a list; empty for other values."""
    first = value[0] if isinstance(value, list) and value else value
    return first.strip() if isinstance(first, str) else ""
