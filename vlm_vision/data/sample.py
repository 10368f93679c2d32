"""The record that all sources of pretraining are read to, and sequences of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from vlm_vision.data.stored_image import ImageSource


@dataclass(frozen=True)
class Sample:
    """An image and what is said of it."""

    image: ImageSource
    caption: str = ""
    """Empty: there is none."""
    label: int = -1
    """Place of its class in `Samples.classes`; -1: there is none."""
    name: str = ""
    """What to call it in an error."""


class LostSampleError(ValueError):
    """A sample that should be there, and those after it too: `ahead` rows on is the one to take in its place."""

    def __init__(self, sentence: str, ahead: int):
        super().__init__(sentence)
        self.ahead = ahead


@dataclass(frozen=True)
class Shards:
    """How samples lie in shards, one shard after another."""

    sizes: tuple[int, ...]
    """Samples of each."""
    together: int = 0
    """How many are shuffled together; 0: all."""
    fetch: Callable[[int], None] | None = None
    """Brings the shard of a number near; None: they are."""
    near: int = 0
    """How many to have near at once, where they must be fetched."""

    def cut(self, start: int, stop: int) -> "Shards":
        """Of the rows from `start` to `stop`; shards without any keep their numbers."""
        ends = np.clip(np.cumsum([0, *self.sizes]), start, max(start, stop))
        return replace(self, sizes=tuple(np.diff(ends).tolist()))


class Samples(Sequence[Sample]):
    """Samples that are made when asked for: of shards and data sets only the places are held in memory.

    A slice is another such sequence. Pickles with its `make`, for the workers of a DataLoader.

    Args:
        make: row -> its sample.
        rows: which rows, in which order.
        classes: names of the labels, in order; empty where there are none.
        shards: how the rows lie in shards, if they do.
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
        """The same samples labeled by their place in `classes`: a test split by those of its training split.

        Raises:
            ValueError: `classes` lacks one of theirs.
        """
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise ValueError(f"class {unknown[0]!r} is none of the {len(classes)} expected: use splits of one data set")
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
    """A caption, the first of a list of them; empty for what is none."""
    first = value[0] if isinstance(value, list) and value else value
    return first.strip() if isinstance(first, str) else ""
