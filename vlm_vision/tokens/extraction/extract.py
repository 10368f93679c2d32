"""Extraction: a source of images, encoded into a token store, by any number of processes, to the same bytes.

The unit of work is a shard. A process takes one that no other holds, by a lock that the system frees when the process dies; the
finished shard appears in one step. The process that sees the last one finishes the store.
"""

import copy
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from projectors import Projector
from vlm_vision.deploy.cpu_layout import pack_for_cpu
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.tokens.about import read_about, stamp_of, write_about
from vlm_vision.tokens.card import write_store_card
from vlm_vision.tokens.extraction.encode import TokenEncoder
from vlm_vision.tokens.extraction.lock import held
from vlm_vision.tokens.extraction.opening import open_store, plan_path
from vlm_vision.tokens.extraction.plan import read_plan
from vlm_vision.tokens.extraction.work import Encoded, default_workers, encode_in_order, one_thread_each, single_threads
from vlm_vision.tokens.numbers import Loss, to_disk
from vlm_vision.tokens.shard import INDEX, WORK, ShardWriter, bad_images, file_name, read_failures
from vlm_vision.tokens.source import Item, Source
from vlm_vision.tokens.wanted import Wanted

MAX_BAD, FEW_BAD = 0.1, 2
"""Share of bad images above which a run stops, unless another is chosen; that many are allowed in any case."""
Progress = Callable[[int, int, int], None]
"""Called with the number of images finished, of all images, and of bad ones."""


def extract(
    source: Source,
    encoder: Encoder | FusedEncoder,
    out: str | Path,
    *,
    wanted: Wanted = Wanted(),
    name: str = "",
    described: Mapping[str, Any] | None = None,
    projector: Projector | None = None,
    append: bool = False,
    max_bad: float | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> None:
    """Encode every image of a source into a token store; the same call again resumes where it stopped.

    Args:
        source: the images.
        encoder: on the device that computes; a copy of it is used.
        out: folder of the store.
        wanted: what is stored, and how.
        name: of the encoder, for readers.
        described: what names the source, as JSON; a store that is half written is finished from the same one alone.
        projector: maps the patch tokens before they are stored.
        append: add the images whose keys a finished store lacks, those that were bad among them.
        max_bad: share of bad images above which the run stops; None for 0.1, and two in any case.
        workers: threads that decode, preprocess and, on the CPU, compute; 0 for one a core.
        progress: called after each batch.

    Raises:
        ValueError: settings, weights or preprocessing other than those of the store in `out`; another source; a key that occurs twice;
            too many bad images; a folder of something else.
        OSError: `out` cannot be written, or the source is gone: finished shards stay, and the same call resumes.
    """
    tokens = prepare(encoder, wanted, projector)
    settings = TokenEncoder(encoder, wanted, projector).describe(name)
    run = Extraction(Path(out), source, tokens, max_bad=max_bad, workers=workers or default_workers())
    run(settings, dict(described or {}), append=append, progress=progress or _silent)


def prepare(encoder: Encoder | FusedEncoder, wanted: Wanted, projector: Projector | None) -> TokenEncoder:
    """A copy of the encoder that computes as wanted: in its precision, and packed for the CPU where its images have one size."""
    TokenEncoder(encoder, wanted, projector)  # which checks
    encoder = copy.deepcopy(encoder).eval().requires_grad_(False).to(getattr(torch, wanted.precision))
    size = encoder.preprocess.output_size
    if encoder.device.type == "cpu" and size is not None and wanted.precision != "float16":
        with suppress(ValueError):  # this PyTorch has neither MKL nor oneDNN
            pack_for_cpu(encoder, batch=wanted.batch_size, height=size[0], width=size[1])
    return TokenEncoder(encoder, wanted, None if projector is None else copy.deepcopy(projector).eval())


class Extraction:
    """One process's part of making a store. Arguments as in `extract`."""

    def __init__(self, store: Path, source: Source, tokens: TokenEncoder, *, max_bad: float | None, workers: int):
        self.store, self.source, self.tokens = store, source, tokens
        self.max_bad, self.workers = max_bad, workers
        self.about: dict[str, Any] = {}

    def __call__(
        self, settings: Mapping[str, Any], described: Mapping[str, Any], *, append: bool, progress: Progress
    ) -> None:
        """Open the store, encode shards until none is left, finish it."""
        with one_thread_each(), _disk(self.store):
            self.open(settings, described, append=append)
            while left := self.left():
                if not any([self.lease(number, progress) for number in left]):
                    time.sleep(0.5)  # other processes hold them
            self.finish()

    def open(self, settings: Mapping[str, Any], described: Mapping[str, Any], *, append: bool) -> None:
        """Make the store, or check the one there. Errors as `extract`."""
        self.about = open_store(self.store, self.source, self.tokens, settings, described, append=append)

    def encode_alone(self, number: int) -> None:
        """Encode a shard of a store that another process has opened, and wait for it if a third one holds it."""
        with one_thread_each(), _disk(self.store):
            self.about = read_about(self.store)
            while number in self.left() and not self.lease(number, _silent):
                time.sleep(0.5)

    @property
    def segment(self) -> dict[str, Any]:
        """What is encoded."""
        return self.about["segments"][-1]

    def left(self) -> list[int]:
        """Numbers of the shards that are not finished."""
        if self.about["finished"]:
            return []
        first, there = self.segment["first_shard"], {path.stem for path in (self.store / INDEX).glob("*.parquet")}
        return [number for number in range(first, first + self.segment["shards"]) if f"{number:05d}" not in there]

    def lease(self, number: int, progress: Progress) -> bool:
        """Encode a shard, unless it is finished; False if another process holds it.

        Raises:
            ValueError: after it, if too many images are bad.
        """
        with held(self.store / WORK, file_name(number, "lock"), wait=False) as ours:
            if ours and not (self.store / INDEX / file_name(number, "parquet")).exists():
                self._encode(number, progress)
        if ours:
            self._check_bad()
        return ours

    def finish(self) -> None:
        """Write the final store.json and the card, and remove plan and locks."""
        if not read_about(self.store)["finished"]:
            with held(self.store / WORK, "store.lock"):
                self._write_end()
        if read_about(self.store)["finished"]:
            shutil.rmtree(self.store / WORK, ignore_errors=True)

    def _write_end(self) -> None:
        about = read_about(self.store)
        if about["finished"]:
            return  # by another process
        parts = sorted((self.store / INDEX).glob("*.parquet"))
        rows = [pq.read_metadata(part).num_rows for part in parts]
        failures = bad_images(self.store)
        if not any(rows):
            key, reason = next(iter(failures.items()))
            raise ValueError(f"none of {len(failures)} images can be read; the first is {key}: {reason}")
        first = next(part for part, count in zip(parts, rows, strict=True) if count)
        about |= json.loads((pq.read_schema(first).metadata or {})[b"about"])
        about |= {"rows": sum(rows), "failures": len(failures), "finished": True}
        write_store_card(self.store, about)
        write_about(self.store, about)

    def _encode(self, number: int, progress: Progress) -> None:
        items = read_plan(plan_path(self.store, self.about), number - self.segment["first_shard"])
        writer = ShardWriter(self.store, number, stamp=stamp_of(self.about), label=self.about["label"])
        done, bad, dtype = self._done(), len(read_failures(self.store)), self.tokens.wanted.dtype
        loss, channels = Loss(), {}
        try:
            with single_threads(self.workers) as pool:
                batches = encode_in_order(self.tokens, self.source.images(items), pool, self.workers)
                left = iter(items)
                for batch in batches:
                    for item, one in zip(islice(left, len(batch)), batch, strict=True):
                        self._write(writer, item, one)
                    if not channels:
                        good = [one for one in batch if not isinstance(one, ValueError)]
                        for one in good:
                            loss.add(one.tensors, dtype)
                            channels = {key: value.shape[-1] for key, value in one.tensors.items()}
                    done += len(batch)
                    progress(done, self.segment["count"], bad + len(writer.failures))
            writer.finish({"channels": channels, "loss": loss.to_dict()})
        finally:
            writer.close()

    def _write(self, writer: ShardWriter, item: Item, one: Encoded) -> None:
        if isinstance(one, ValueError):
            self.source.check()
            writer.fail(item.key, str(one))
            return
        label = item.label if self.about["label"] == "int" or item.label is None else str(item.label)
        tensors = {}
        try:
            for key, value in one.tensors.items():
                tensors |= to_disk(key, value, self.tokens.wanted.dtype)
        except ValueError as error:
            raise ValueError(f"image {item.key}: {error}") from None
        writer.add(item.key, tensors, grid=one.grid, frames=one.frames, label=label, caption=item.caption)

    def _done(self) -> int:
        """Images of the finished shards."""
        of_shard, first, count = self.about["shard_images"], self.segment["first_shard"], self.segment["count"]
        return count - sum(min(of_shard, count - (number - first) * of_shard) for number in self.left())

    def _check_bad(self) -> None:
        failures, share = bad_images(self.store), MAX_BAD if self.max_bad is None else self.max_bad
        total = sum(segment["count"] for segment in self.about["segments"])
        if len(failures) > max(share * total, FEW_BAD if self.max_bad is None else 0):
            key, reason = next(iter(failures.items()))
            raise ValueError(
                f"{len(failures)} of {total} images cannot be read, more than the share of {share:g} that max_bad allows; "
                f"the first is {key}: {reason}"
            )


def _silent(done: int, total: int, bad: int) -> None:
    """No progress is shown."""


@contextmanager
def _disk(store: Path) -> Iterator[None]:
    """A disk that is full or read-only, in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES):
            raise
        raise OSError(
            f"{store} cannot be written ({os.strerror(error.errno)}): make room, and run the same command again; finished "
            "shards are kept"
        ) from None
