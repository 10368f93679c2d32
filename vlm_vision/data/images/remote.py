"""Samples of shards by URL: a shard is fetched whole at the first access to one of its samples."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from vlm_vision.data.sample import LostSampleError, Sample, Samples, Shards
from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.data.shards.fetch import MissingFileError, size_of
from vlm_vision.data.shards.members import caption_at, label_at
from vlm_vision.data.shards.sizes import sizes_of
from vlm_vision.data.shards.tar import TarMember, read_at
from vlm_vision.data.stored_image import StoredImage


@dataclass(frozen=True)
class Remote:
    """A shard by URL."""

    url: str
    size: int
    """Number of samples that its sizes state."""
    cache: ShardCache


@dataclass(frozen=True)
class RemoteImage(StoredImage):
    """An image inside a shard by URL, which is fetched again if it was removed meanwhile."""

    shard: Remote
    member: TarMember

    def __str__(self) -> str:
        return str(self.member)

    def read(self) -> bytes:
        with self.shard.cache.opened(self.shard.url, self.shard.size) as shard:
            return read_at(shard.file, self.member.offset, self.member.size, self.member)

    def version(self) -> str:
        with self.shard.cache.opened(self.shard.url, self.shard.size) as shard:
            return f"{shard.size} {self.member.offset} {self.member.size}"


class RemoteSamples:
    """Row -> sample.

    Raises:
        LostSampleError: its shard is missing, or ends before it; the sample at the same place of the next shard replaces it.
        ValueError: its label is not the number of a class.
        Unreachable: its shard cannot be fetched now.
    """

    def __init__(self, shards: Sequence[Remote], classes: int):
        self.shards, self.classes = tuple(shards), classes
        self.ends = list(accumulate(shard.size for shard in shards))

    def __call__(self, row: int) -> Sample:
        number = bisect_right(self.ends, row)
        shard = self.shards[number]
        index = row - self.ends[number] + shard.size
        following = self.shards[(number + 1) % len(self.shards)]
        ahead = shard.size - index + index % following.size
        try:
            with shard.cache.opened(shard.url, shard.size) as held:
                if index >= held.count:
                    raise LostSampleError(
                        f"{shard.url} has {held.count} of {shard.size} samples: this one is missing", ahead
                    )
                name, places = held.sample(index)
                image = TarMember(shard.url, name, places.image, places.image_size)
                caption = caption_at(held.file, places, image)
                label = self._label(label_at(held.file, places, image), image)
        except MissingFileError as error:
            raise LostSampleError(str(error), ahead) from None
        return Sample(RemoteImage(shard, image), caption, label, str(image))

    def _label(self, text: str | None, image: TarMember) -> int:
        if not text or not self.classes:
            return -1
        if not text.isdecimal() or int(text) >= self.classes:
            raise ValueError(
                f"{image} has the label {text!r}: expected a number below {self.classes}, the setting classes"
            )
        return int(text)

    def bring(self, number: int) -> None:
        """Fetch a shard, unless it is there or another process does."""
        shard = self.shards[number]
        shard.cache.bring(shard.url, shard.size)


def remote_shards(source: str, cache: ShardCache, *, classes: int, together: int) -> Samples:
    """The samples of WebDataset shards by URL, as img2dataset writes them.

    `sizes.json` or `00000_stats.json` in their folder states their numbers of samples: see `shards.sizes.sizes_of`. All processes of
    all machines draw from the same shards, so that every machine fetches every shard.

    Args:
        source: URL of .tar shards, with braces: `https://host/{00000..00999}.tar`; http, https, or what fsspec knows.
        cache: folder of shards.
        classes: number of classes of the labels; 0 to ignore labels.
        together: number of shards that are shuffled together; 0 for all.

    Raises:
        ValueError: not shards, unknown numbers of samples, or a cache for fewer shards than `together`.
    """
    shards = [Remote(url, size, cache) for url, size in sizes_of(source, cache).items() if size]
    if not shards:
        raise ValueError(f"{source} holds no sample: all its sizes are 0")
    size, together = size_of(shards[0].url), min(together or len(shards), len(shards))
    near = int(cache.gb * 1e9 / size) if size else 2 * together
    if near < together:
        raise ValueError(
            f"the cache of {cache.gb} GB holds {near} shards of {(size or 0) / 1e9:.3g} GB, such as {shards[0].url}, and "
            f"{together} are shuffled together: raise data.cache_gb, or lower data.shuffle_shards"
        )
    make = RemoteSamples(shards, classes)
    held = Shards(tuple(shard.size for shard in shards), together, make.bring, min(near, 2 * together))
    return Samples(make, range(make.ends[-1]), tuple(map(str, range(classes))), held)
