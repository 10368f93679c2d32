"""WebDataset shards, local or by URL."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.data.shards.fetch import MissingFileError
from vlm_vision.data.shards.members import SampleOffsets, caption_at, index_of, label_at
from vlm_vision.data.shards.tar import TarMember, members_by_key, open_shard, read_at
from vlm_vision.data.stored_image import StoredImage
from vlm_vision.tokens.source import Item, Opened
from vlm_vision.tokens.sources.columns import are_whole, label_of
from vlm_vision.tokens.sources.places import base_name, check_place, is_url, log


@dataclass(frozen=True)
class FetchedMember(StoredImage):
    """An image inside a shard by URL, which is fetched again if it was removed from the cache meanwhile."""

    member: TarMember
    cache: ShardCache

    def __str__(self) -> str:
        return str(self.member)

    def read(self) -> bytes:
        with self.cache.opened(self.member.shard) as shard:
            return read_at(shard.file, self.member.offset, self.member.size, self.member)

    def version(self) -> str:
        return f"{self.member.offset} {self.member.size}"


@dataclass(frozen=True)
class ShardFiles:
    """The images of shards in their order, and in that of their members; a key is `shard/member`, such as `00000.tar/17.jpg`.

    A caption is "caption" of the JSON, else the text; a label is that of `.cls`, an int if it is a whole number. Shards are
    indexed one at a time; those by URL are fetched to the cache.
    """

    paths: tuple[str, ...]
    cache: ShardCache = ShardCache()
    kind = "WebDataset shards"

    def items(self) -> Iterator[Item]:
        names, count, without = shard_names(self.paths), 0, 0
        for path in self.paths:
            with self._opened(path) as (file, samples, lacking):
                without += lacking
                for name, offsets in samples:
                    image = TarMember(path, name, offsets.image, offsets.image_size)
                    label = label_at(file, offsets, image)
                    caption = caption_at(file, offsets, image) or None
                    label = label_of(label, are_whole([label]))
                    yield Item(f"{names[path]}/{name}", path, image.offset, image.size, label, caption)
                    count += 1
        if not count:
            raise ValueError(f"{', '.join(self.paths[:3])} hold no image: expected members such as key.jpg")
        if without:
            log.warning("%d of %d samples of the shards have no image and are left out", without, without + count)

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        names = shard_names(self.paths)
        for item in items:
            name = item.key.removeprefix(f"{names[item.place]}/")
            member = TarMember(item.place, name, item.start, item.size)
            yield FetchedMember(member, self.cache) if is_url(item.place) else member

    def check(self) -> None:
        for path in self.paths:
            check_place(path)

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[BinaryIO, Iterator[tuple[str, SampleOffsets]], int]]:
        """A shard, its images, and the number of samples without one."""
        if is_url(path):
            try:
                with self.cache.opened(path) as shard:
                    yield shard.file, (shard.sample(number) for number in range(shard.count)), 0
            except MissingFileError as error:
                raise ValueError(f"{error}: expected a .tar file") from None
            return
        with open_shard(path) as file:
            names, offsets, lacking = index_of(members_by_key(path, file))
            yield file, zip(names, offsets, strict=True), len(lacking)


def shard_names(paths: Sequence[str]) -> dict[str, str]:
    """Path of a shard -> its name in keys: without its folder, but the folders that differ where names are equal."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_name[base_name(path)].append(path)
    names = {}
    for name, held in by_name.items():
        parts = [path.split("/") for path in held]
        same = 0
        while len(held) > 1 and all(len(one) > same + 1 and one[same] == parts[0][same] for one in parts):
            same += 1
        names |= {path: "/".join(one[same:]) if len(held) > 1 else name for path, one in zip(held, parts, strict=True)}
    return names
