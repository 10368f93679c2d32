"""Beginning of an extraction: a new store with its plan, or the check that the one there is of the same settings and source.

A segment is what one source adds to a store: the number and digest of its images, and its shards.
"""

import shutil
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from vlm_vision.tokens.about import ABOUT, difference, read_about, write_about
from vlm_vision.tokens.extraction.encode import ImageTokens, TokenEncoder
from vlm_vision.tokens.extraction.lock import held
from vlm_vision.tokens.extraction.plan import Listing, write_plan
from vlm_vision.tokens.extraction.work import encode_in_order, single_threads
from vlm_vision.tokens.shard import WORK, read_failures, stored_keys
from vlm_vision.tokens.source import Source
from vlm_vision.tokens.wanted import DTYPES

MOST_IMAGES = 1024
"""Images of a shard at most, so that little is lost where rows are small."""


def open_store(
    store: Path,
    source: Source,
    tokens: TokenEncoder,
    settings: Mapping[str, Any],
    described: Mapping[str, Any],
    *,
    append: bool,
) -> dict[str, Any]:
    """Content of store.json, whose last segment is to be encoded unless `finished`.

    Args:
        settings: what describes the settings, from `describe_store`.
        described: what names the source, as JSON.
        append: add the images whose keys a finished store lacks.

    Raises:
        ValueError: a file or a folder of something else; a store of other settings, or of another source; a key that occurs twice.
    """
    new = not store.exists()
    if not new and not store.is_dir():
        raise ValueError(f"{store} is a file: choose a folder for the store")
    if not new and not (store / ABOUT).exists() and not (store / WORK).exists() and any(store.iterdir()):
        raise ValueError(f"{store} holds other files and no {ABOUT}: choose a new folder for the store")
    (store / WORK).mkdir(parents=True, exist_ok=True)
    opening = _Opening(store, source, tokens, dict(described))
    try:
        with held(store / WORK, "store.lock"):
            if not (store / ABOUT).exists():
                return opening.create(dict(settings))
            return opening.reopen(dict(settings), append)
    except BaseException:
        if not (store / ABOUT).exists():
            shutil.rmtree(store if new else store / WORK, ignore_errors=True)
        elif read_about(store)["finished"]:
            shutil.rmtree(store / WORK, ignore_errors=True)
        raise


def plan_path(store: Path, about: Mapping[str, Any]) -> Path:
    """The plan of the last segment."""
    return store / WORK / f"plan-{len(about['segments']) - 1}.parquet"


def bytes_of(image: ImageTokens, dtype: str) -> int:
    """Bytes on disk of what is stored of an image."""
    scale = 4 if dtype == "int8" else 0
    tensors = image.tensors.values()
    return sum(value.numel() * DTYPES[dtype].itemsize + value.numel() // value.shape[-1] * scale for value in tensors)


def first_images(source: Source, tokens: TokenEncoder) -> list[ImageTokens]:
    """What is stored of the first images of a source, one batch of them; those that cannot be read are left out."""
    items = list(islice(source.items(), tokens.wanted.batch_size))
    with single_threads(1) as pool:
        batches = list(encode_in_order(tokens, source.images(items), pool, 1))
    return [one for batch in batches for one in batch if isinstance(one, ImageTokens)]


def shard_images(tokens: TokenEncoder, first: Collection[ImageTokens]) -> int:
    """Images of a shard, by the size of the first ones."""
    wanted = tokens.wanted
    if wanted.shard_images:
        return wanted.shard_images
    largest = max((bytes_of(one, wanted.dtype) for one in first), default=0)
    return max(1, min(MOST_IMAGES, wanted.shard_mb * 2**20 // max(largest, 1)))


class _Opening:
    def __init__(self, store: Path, source: Source, tokens: TokenEncoder, described: dict[str, Any]):
        self.store, self.source, self.tokens, self.described = store, source, tokens, described

    def create(self, about: dict[str, Any]) -> dict[str, Any]:
        of_shard = self.tokens.wanted.shard_images or shard_images(self.tokens, first_images(self.source, self.tokens))
        listing = self._list(0, of_shard)
        if not listing.count:
            raise ValueError("the source holds no image: expected at least one")
        segment = self._segment(listing, 0, of_shard)
        about |= {"shard_images": of_shard, "label": listing.label or "str", "segments": [segment], "finished": False}
        write_about(self.store, about)
        return about

    def reopen(self, settings: dict[str, Any], append: bool) -> dict[str, Any]:
        about = read_about(self.store)
        if found := difference(about, settings):
            raise ValueError(
                f"{self.store} was made with other settings: {found}; choose another folder, or the settings of the store"
            )
        sources = [segment["source"] for segment in about["segments"]]
        if not about["finished"]:
            if sources[-1] != self.described:
                raise ValueError(
                    f"{self.store} is half written from {_named(sources[-1])}, not from {_named(self.described)}: finish it "
                    "by the command that began it, or choose another folder"
                )
            return about
        if append:
            return self._append(about)
        if self.described not in sources:
            raise ValueError(
                f"{self.store} is finished, from {_named(sources[-1])}: --append adds the images of {_named(self.described)}"
            )
        keys = stored_keys(self.store) | read_failures(self.store).keys()
        if new := [item.key for item in self.source.items() if item.key not in keys]:
            raise ValueError(
                f"{self.store} is finished, and {_named(self.described)} now has {len(new)} more images, such as {new[0]}: "
                "--append adds them"
            )
        return about

    def _append(self, about: dict[str, Any]) -> dict[str, Any]:
        number = len(about["segments"])
        listing = self._list(number, about["shard_images"], stored_keys(self.store))
        if not listing.count:
            return about
        if about["label"] == "int" and listing.label == "str":
            raise ValueError(
                f"labels of {self.store} are whole numbers, those of {_named(self.described)} are not: use a separate store"
            )
        first = sum(segment["shards"] for segment in about["segments"])
        segment = self._segment(listing, first, about["shard_images"])
        about |= {"segments": [*about["segments"], segment], "finished": False}
        write_about(self.store, about)
        return about

    def _list(self, number: int, of_shard: int, known: Collection[str] = ()) -> Listing:
        path = self.store / WORK / f"plan-{number}.parquet"
        return write_plan(path, self.source.items(), shard_images=of_shard, known=known)

    def _segment(self, listing: Listing, first: int, of_shard: int) -> dict[str, Any]:
        return {
            "source": self.described,
            "count": listing.count,
            "digest": listing.digest,
            "first_shard": first,
            "shards": -(-listing.count // of_shard),
        }


def _named(source: Mapping[str, Any]) -> str:
    return ", ".join(source.get("sources", [])) or "the images of another call"
