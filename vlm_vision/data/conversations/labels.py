"""Conversations to token ids and labels: loss on the answers alone, as the model's chat template writes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_vision.data.conversations.records import Conversation
from vlm_vision.vlm.processor import VisionLanguageProcessor

IGNORED = -100
_MARKUP = ("<", "[")
"""Signs of answers that a template may rewrite."""
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # no characters of any text: they mark answers in the rendered one, then go


@dataclass(frozen=True)
class Example:
    """One conversation as numbers."""

    input_ids: list[int]
    labels: list[int]
    """input_ids where an answer is, -100 elsewhere."""


class ChatLabels:
    """Examples by a processor's chat template.

    The template renders the whole conversation once, with each answer between marks; the marks give the characters of the
    answers, the tokenizer's offsets their tokens. An answer includes the template's text between the generation prompt
    and the answer, and the end-of-turn token after it.

    Raises:
        ValueError: a slow tokenizer (no offsets), or a template without a special token after answers, so that a
            trained model could not stop.
    """

    def __init__(self, processor: VisionLanguageProcessor, *, max_length: int | None = None):
        self.processor, self.tokenizer, self.max_length = processor, processor.tokenizer, max_length
        if not self.tokenizer.is_fast:
            raise ValueError(f"{type(self.tokenizer).__name__} gives no character offsets: load the fast tokenizer")
        self.lead, self.tail = processor.answer_frame()

    def __call__(self, conversation: Conversation, image_tokens: Sequence[int]) -> Example:
        """The conversation as numbers; image_tokens is the number of tokens of each of its images, in order.

        Raises ValueError if max_length would cut image tokens, or every answer, or a text holds our marks.
        """
        if any(mark in text for turn in conversation.turns for text in turn for mark in (_OPEN, _CLOSE)):
            raise ValueError(f"{conversation.name} holds U+FDD0 or U+FDD1, which are not characters: remove them")
        text, spans = self._rendered(conversation)
        bos = self.tokenizer.bos_token
        encoded = self.tokenizer(
            text,
            return_offsets_mapping=True,
            add_special_tokens=not (bos and text.startswith(bos)),
            return_token_type_ids=False,
        )
        image = self.processor.image_token_id
        counts = iter(image_tokens)
        ids, labels = [], []
        answers = iter(spans)
        span = next(answers, None)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            while span is not None and start >= span[1]:
                span = next(answers, None)
            repeat = next(counts) if token == image else 1
            answer = span is not None and start < span[1] and end > span[0]
            ids += [token] * repeat
            labels += [token if answer else IGNORED] * repeat
        return self._truncate(ids, labels, conversation.name, image)

    def _rendered(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the (start, end) of each answer in it, with its frame."""
        plain = [
            {**m, "content": m["content"].strip()} if m["role"] == "assistant" else m for m in conversation.messages()
        ]
        marked = [{**m, "content": f"{_OPEN}{m['content']}{_CLOSE}"} if m["role"] == "assistant" else m for m in plain]
        text = self.processor.apply_chat_template(marked)
        parts = [part.partition(_CLOSE) for part in text.split(_OPEN)[1:]]
        answers = [m["content"] for m in plain if m["role"] == "assistant"]
        kept = [inside for inside, close, after in parts if close and _CLOSE not in after] == answers
        if kept and not any(sign in answer for answer in answers for sign in _MARKUP):
            return self._unmark(text, conversation.name)
        whole = self.processor.apply_chat_template(plain)  # which may treat an answer in another way than a marked one
        if kept and whole == text.replace(_OPEN, "").replace(_CLOSE, ""):
            return self._unmark(text, conversation.name)
        return whole, self._spans_by_prompt(whole, plain, conversation.name)

    def _spans_by_prompt(self, text: str, messages: list[dict[str, str]], name: str) -> list[tuple[int, int]]:
        """As `_rendered`, for a template that rewrites answers: an answer begins where its prompt ends.

        Raises:
            ValueError: a template whose text of the whole conversation does not begin with the prompt of an answer.
        """
        spans = []
        for i in range(1, len(messages), 2):
            prompt = self.processor.apply_chat_template(messages[:i], add_generation_prompt=True)
            end = text.find(self.tail, len(prompt))
            if not text.startswith(prompt) or end <= len(prompt):
                raise ValueError(
                    f"{name}: the chat template rewrites this answer, as those do that move or drop <think>, so that its tokens "
                    "cannot be separated from the prompt: use another template, or leave the reasoning out of the answers"
                )
            spans.append((len(prompt), end + len(self.tail)))
        return spans

    def _unmark(self, marked: str, name: str) -> tuple[str, list[tuple[int, int]]]:
        """Text without marks, and the (start, end) of each answer in it, with its frame."""
        text, spans = "", []
        before, *rest = marked.split(_OPEN)
        text = before
        for part in rest:
            answer, after = part.split(_CLOSE)
            start = len(text) - (len(self.lead) if text.endswith(self.lead) else 0)
            if not after.startswith(self.tail):
                raise ValueError(
                    f"{name}: the chat template ends only the last of several answers with {self.tail!r}: ask one question "
                    "in a conversation (turns: 1), or use another template"
                )
            spans.append((start, len(text) + len(answer) + len(self.tail)))
            text += answer + after
        return text, spans

    def _truncate(self, ids: list[int], labels: list[int], name: str, image: int) -> Example:
        if self.max_length is not None and len(ids) > self.max_length:
            if image in ids[self.max_length :]:
                raise ValueError(
                    f"{name} has {len(ids)} tokens and max_length {self.max_length} would cut image tokens: raise max_length"
                )
            ids, labels = ids[: self.max_length], labels[: self.max_length]
        if all(label == IGNORED for label in labels):
            raise ValueError(
                f"{name} has no answer token within max_length {self.max_length}: raise it, or drop the record"
            )
        return Example(ids, labels)


def pad(examples: Sequence[Example], pad_token_id: int) -> dict[str, Tensor]:
    """input_ids, labels and attention_mask, each (B, T), padded on the right."""
    return {
        "input_ids": _rows([e.input_ids for e in examples], pad_token_id),
        "labels": _rows([e.labels for e in examples], IGNORED),
        "attention_mask": _rows([[1] * len(e.input_ids) for e in examples], 0),
    }


def pack(examples: Sequence[Example], pad_token_id: int, *, length: int) -> dict[str, Tensor]:
    """Examples one after another in rows of at most `length` tokens; a longer one has a separate row.

    Returns:
        input_ids, labels, position_ids, each (rows, T). Positions begin again with each example, and with the padding at
        the end of a row; no label crosses from one example to the next.
    """
    rows: list[list[Example]] = []
    room = 0
    for example in examples:
        if len(example.input_ids) > room:
            rows.append([])
            room = length
        rows[-1].append(example)
        room -= len(example.input_ids)
    ids = [[token for e in row for token in e.input_ids] for row in rows]
    labels = [[label for e in row for label in [IGNORED, *e.labels[1:]]] for row in rows]
    positions = [[i for e in row for i in range(len(e.input_ids))] for row in rows]
    width = max(map(len, ids))
    positions = [[*row, *range(width - len(row))] for row in positions]
    return {
        "input_ids": _rows(ids, pad_token_id),
        "labels": _rows(labels, IGNORED),
        "position_ids": torch.tensor(positions),
    }


def _rows(values: Sequence[list[int]], fill: int) -> Tensor:
    width = max(map(len, values))
    return torch.tensor([row + [fill] * (width - len(row)) for row in values])
