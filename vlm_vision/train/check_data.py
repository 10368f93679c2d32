"""The check of data before training: printed, kept in data_check.json of the run's folder, and reused when the run resumes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vlm_vision.data.check.conversations import check_conversations, check_lengths, usable
from vlm_vision.data.check.images import check_samples
from vlm_vision.data.check.report import DataReport, first_error
from vlm_vision.data.check.source import state_of
from vlm_vision.data.conversations.labels import ChatLabels
from vlm_vision.data.conversations.read import open_conversations
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.data.sample import Samples
from vlm_vision.files import read_json, write_json
from vlm_vision.train.settings import ConversationData, ImageData

log = logging.getLogger(__name__)

FILE = "data_check.json"
"""File of the reports in the run's folder."""
MOST_SKIPPED = 0.1
"""Share of bad samples that recipes which train on images skip, as `vlm_vision.data.images.batches.Skipped`."""


class DataCheck:
    """Checks the sources of a run, in the main process first.

    Args:
        out: the run's folder.
    """

    def __init__(self, accelerator: Accelerator, out: str | Path):
        self.accelerator, self.path = accelerator, Path(out) / FILE

    def __call__(
        self, name: str, source: str, settings: Mapping[str, Any], make: Callable[[], DataReport]
    ) -> DataReport:
        """A report, made or kept from an earlier check of the same files; prints the table and logs doubts.

        Args:
            name: of the part of the data, "train" or "test".
            settings: what the report depends on in addition to the files.
        """
        state = state_of(source, settings)
        with self.accelerator.main_process_first():
            kept = self._kept()
            report = _read(kept.get(name), state)
            if report is None:
                report = make()
                if self.accelerator.is_main_process:
                    write_json(self.path, kept | {name: {"state": state, **report.to_dict()}})
        self.accelerator.print(report.table())
        return report

    def _kept(self) -> dict[str, Any]:
        try:
            return read_json(self.path)
        except ValueError:
            return {}


def checked_conversations(
    accelerator: Accelerator, out: str, data: ConversationData
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Usable conversations to train on, and to measure on; the second list may be empty.

    Raises:
        ValueError: more bad records than `data.leave_out` allows; the first is named.
    """
    look = DataCheck(accelerator, out)
    parts = {"train": (data.train, data.train_split), "test": (data.test, data.test_split)}
    found: list[Sequence[Conversation]] = []
    for name, (source, split) in parts.items():
        if not source:
            found.append([])
            continue
        opened = open_conversations(source, images=data.images, split=split)
        settings = {"images": data.images, "split": split, "decode": data.check_images == "decode"}
        decode = data.check_images == "decode"
        report = look(name, source, settings, partial(check_conversations, source, opened, decode=decode))
        allow(report, len(opened.rows), data.leave_out, "data.leave_out")
        found.append(usable(opened, report))
    return found[0], found[1]


def check_images(accelerator: Accelerator, out: str, data: ImageData, train: Samples, test: Samples | None) -> None:
    """Checks images before they train. Shards by URL are counted, not read.

    Raises:
        ValueError: more than a tenth of the samples are bad; fewer are skipped in training, and others take their places.
    """
    look = DataCheck(accelerator, out)
    for name, source, samples in (("train", data.train, train), ("test", data.test, test)):
        if samples is not None:
            settings = {"images": data.images, "split": data.train_split if name == "train" else data.test_split}
            report = look(name, source, settings, partial(check_samples, source, samples))
            allow(report, len(samples), MOST_SKIPPED)


def checked_lengths(
    accelerator: Accelerator, name: str, conversations: Sequence[Conversation], chat: ChatLabels, share: float
) -> Sequence[Conversation]:
    """The conversations that `max_length` leaves an answer.

    Args:
        name: of the data in a message.
        share: largest share that may be left out.

    Raises:
        ValueError: more records that do not fit; the first is named.
    """
    report = DataReport(name)
    check_lengths(report, conversations, chat)
    if report.errors or report.doubts:
        accelerator.print(report.table())
    allow(report, len(conversations), share, "data.leave_out")
    if not report.bad:
        return conversations
    return [one for place, one in enumerate(conversations) if place not in report.bad]


def allow(report: DataReport, records: int, share: float, of: str = "") -> None:
    """Log doubts, and a warning for bad records up to a share of all; raise ValueError for more, and for other errors.

    Args:
        of: setting of the share, for the message.
    """
    for kind, one in report.doubts.items():
        log.warning("%s: %s %s: %s", report.source, one.count, kind, one)
    if not report.errors:
        return
    by_row = sum(one.count for one in report.errors.values()) == len(report.bad)
    if not by_row or len(report.bad) > share * records or len(report.bad) == records:
        setting = f", or set {of} to a share from {len(report.bad) / records:.3g} on" if by_row and of else ""
        raise ValueError(f"{first_error([report])}; repair the data{setting}")
    for kind, one in report.errors.items():
        log.warning("%s: %d of %d records are left out, %s: %s", report.source, one.count, records, kind, one)


def _read(kept: Any, state: str) -> DataReport | None:
    """A kept report of the same state; None for another one."""
    if not isinstance(kept, Mapping) or kept.get("state") != state:
        return None
    try:
        return DataReport.from_dict(kept)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
