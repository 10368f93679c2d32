"""A check of conversations: bad records, missing images, duplicates, unread keys, records that max_length cuts."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from PIL import Image

from vlm_vision.data.check.images import ImageCheck
from vlm_vision.data.check.report import DataReport
from vlm_vision.data.conversations.labels import ChatLabels
from vlm_vision.data.conversations.records import Conversation, LazyConversations, Opened
from vlm_vision.data.stored_image import ImageSource
from vlm_vision.vlm.processor import VisionLanguageProcessor


def check_conversations(source: str, opened: Opened, *, decode: bool = False) -> DataReport:
    """A check of every record of a source. Headers of images are read, once each.

    Args:
        decode: decode every image.
    """
    report = DataReport(source, {"records": len(opened.rows)})
    look = ImageCheck(report, decode=decode)
    seen: dict[int, str] = {}
    kinds: Counter[str] = Counter()
    questions = without = 0
    for row in range(len(opened.rows)):
        try:
            one = opened.rows[row]
        except ValueError as error:
            report.error("bad records", str(error), row)
            continue
        if problem := next(filter(None, map(look, one.images)), ""):
            report.error("records with missing or broken images", f"{one.name}: {problem}", row)
            continue
        kinds[one.kind] += len(one.turns)
        questions += len(one.turns)
        without += not one.images
        if (same := seen.setdefault(hash((one.images, one.turns)), one.name)) is not one.name:
            report.doubt("duplicates", f"{one.name} is the same as {same}")
        if any(not answer.strip() for _, answer in one.turns):
            report.doubt("empty answers", f"{one.name} has an answer without text")
    report.facts |= {"questions": questions, **look.facts()}
    if without:
        report.facts["records without an image"] = without
    if len(kinds) > 1:
        report.facts["questions by type"] = dict(sorted(kinds.items()))
    for key, count in opened.unread.items():
        report.doubt("keys that are not read", f"{key} ({count:,} records)")
    if opened.left_out:
        report.doubt("samples left out", opened.left_out[0], len(opened.left_out))
    return report


def usable(opened: Opened, report: DataReport) -> Sequence[Conversation]:
    """The records of a source that its report finds nothing wrong with."""
    rows = opened.rows
    if not isinstance(rows, LazyConversations):
        return [one for row, one in enumerate(rows) if row not in report.bad] if report.bad else rows
    kept = [row for row in range(len(rows)) if row not in report.bad]
    lazy = LazyConversations(rows.make, [rows.rows[row] for row in kept]) if report.bad else rows
    return list(lazy) if opened.in_memory else lazy


def check_lengths(report: DataReport, conversations: Sequence[Conversation], chat: ChatLabels) -> None:
    """Adds the records in which `max_length` would cut image tokens, or every answer; `report.bad` names their places.

    Only records that may be too long are tokenized: a token stands for at least one character of plain text.

    Args:
        report: a new one.
        conversations: usable records.
        chat: of the model's processor, with the limit.
    """
    if chat.max_length is None:
        return
    look, added, cut = ImageCheck(report), _added_by_template(chat), 0
    for place in range(len(conversations)):
        try:
            one = conversations[place]
        except ValueError as error:
            report.error("bad records", str(error), place)
            continue
        each = [_image_tokens(chat, look, image) for image in one.images]
        texts = [part for turn in one.turns for part in turn]
        most = sum(map(len, texts)) + added * len(one.turns) + sum(each)
        if most > chat.max_length or not all(map(str.isascii, texts)):
            try:
                cut += len(chat(one, each).input_ids) == chat.max_length
            except ValueError as error:
                report.error("records that do not fit", str(error), place)
    if cut:
        report.doubt("answers that max_length may cut", f"{cut:,} records have {chat.max_length} tokens or more", cut)


def _image_tokens(chat: ChatLabels, look: ImageCheck, image: ImageSource) -> int:
    processor: Any = chat.processor.image_processor
    if (canvas := processor.canvas_size) is not None:
        return processor.num_image_tokens(*canvas)
    look(image)
    return _tokens_of_size(chat.processor, look.sizes[image])


@cache
def _tokens_of_size(processor: VisionLanguageProcessor, size: tuple[int, int]) -> int:
    blank = Image.new("RGB", (size[1], size[0]))
    return processor.num_image_tokens(processor.image_processor.preprocess([blank]))[0]


def _added_by_template(chat: ChatLabels) -> float:
    """Characters that the chat template and the tokenizer add to a turn, at most."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    try:
        return 8 + max(len(chat.processor.apply_chat_template(turns * count)) for count in (1, 2))
    except Exception:  # a template raises what it likes; the records say more
        return math.inf
