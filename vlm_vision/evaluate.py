"""Does the model answer, and does it look? Accuracy by type of question, with two controls.

Blind: the most frequent training answer to each question, no picture. Shuffled: the model, shown another picture. A
model that uses its eyes beats the first and falls to it under the second.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlm_vision.data.conversations import Conversation
from vlm_vision.vlm.model import VisionLanguageModel

PatchTokens = Callable[[Sequence[str]], Tensor]
"""Paths of pictures -> their patch tokens, (len(paths), N, D)."""


@dataclass(frozen=True)
class Report:
    """Accuracies from 0 to 1; by type of question in the same order everywhere."""

    counts: dict[str, int]
    accuracy: float
    by_type: dict[str, float]
    blind: float
    blind_by_type: dict[str, float]
    shuffled: float | None
    """Over the questions that could be shown other pictures; None if there are none."""
    shuffled_by_type: dict[str, float]

    def table(self) -> str:
        """As text, one row for each type of question."""
        rows = [f"{'question type':14} {'questions':>9} {'model':>8} {'blind':>8} {'shuffled':>9}"]
        for kind, count in self.counts.items():
            cells = (self.by_type[kind], self.blind_by_type[kind])
            shuffled = _percent(self.shuffled_by_type.get(kind))
            rows.append(f"{kind:14} {count:9} {cells[0]:8.1%} {cells[1]:8.1%} {shuffled:>9}")
        total = sum(self.counts.values())
        rows.append(f"{'all':14} {total:9} {self.accuracy:8.1%} {self.blind:8.1%} {_percent(self.shuffled):>9}")
        return "\n".join(rows)


@torch.no_grad()
def answers(
    model: VisionLanguageModel,
    conversations: Sequence[Conversation],
    *,
    images: Sequence[Sequence[str]] | None = None,
    patch_tokens: PatchTokens | None = None,
    batch_size: int = 128,
    max_new_tokens: int = 16,
    name: str = "answering",
) -> list[str]:
    """Greedy answers to the first question of each conversation.

    Args:
        images: pictures to show instead of the conversations' own.
        patch_tokens: reads the pictures' tokens where they are cached; default they are encoded.
    """
    assert model.processor is not None
    model.eval()
    shown = [tuple(paths) for paths in images] if images is not None else [first_pictures(one) for one in conversations]
    tokens_per_image = _tokens_per_image(model, shown)
    prompts = [
        model.processor.apply_chat_template([one.messages()[0]], add_generation_prompt=True).replace(
            "<image>", "<image>" * tokens_per_image
        )
        for one in conversations
    ]
    tokenizer = model.processor.tokenizer
    bos = tokenizer.bos_token
    found = [""] * len(prompts)
    by_picture = sorted(range(len(prompts)), key=lambda i: shown[i])  # so that each picture is encoded about once
    for start in tqdm(range(0, len(prompts), batch_size), desc=name, unit="batch"):
        rows = by_picture[start : start + batch_size]
        texts = [prompts[i] for i in rows]
        special = not (bos and all(text.startswith(bos) for text in texts))
        batch = tokenizer(
            texts, padding=True, return_tensors="pt", add_special_tokens=special, return_token_type_ids=False
        )
        batch = batch.to(model.device)
        seen = _see(model, [path for i in rows for path in shown[i]], patch_tokens)
        out = model.generate(**batch, patch_tokens=seen, max_new_tokens=max_new_tokens, do_sample=False)
        for i, text in zip(
            rows, tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True), strict=True
        ):
            found[i] = text.strip()
    return found


def evaluate(
    model: VisionLanguageModel,
    test: Sequence[Conversation],
    train: Sequence[Conversation],
    *,
    patch_tokens: PatchTokens | None = None,
    batch_size: int = 128,
    max_new_tokens: int = 16,
    seed: int = 0,
) -> tuple[Report, list[str]]:
    """The report on `test`, and the model's answers. `train` is what the blind answers are learned from."""
    options: dict[str, Any] = dict(patch_tokens=patch_tokens, batch_size=batch_size, max_new_tokens=max_new_tokens)
    given = answers(model, test, **options)
    other = other_pictures(test, seed=seed)
    swapped = [one for one, paths in zip(test, other, strict=True) if paths is not None]
    shown = [paths for paths in other if paths is not None]
    confused = answers(model, swapped, images=shown, name="answering, pictures shuffled", **options)
    by_type = _by_type(test, given)
    shuffled_by_type = _by_type(swapped, confused)
    counts = dict(sorted(Counter(one.kind for one in test).items()))

    def overall(asked: Sequence[Conversation], said: Sequence[str]) -> float | None:
        hits = [right(answer, one.turns[0][1]) for one, answer in zip(asked, said, strict=True)]
        return sum(hits) / len(hits) if hits else None

    blind = blind_answers(test, train)
    report = Report(
        counts=counts,
        accuracy=overall(test, given) or 0.0,
        by_type=by_type,
        blind=overall(test, blind) or 0.0,
        blind_by_type=_by_type(test, blind),
        shuffled=overall(swapped, confused),
        shuffled_by_type=shuffled_by_type,
    )
    return report, given


def right(answer: str, wanted: str) -> bool:
    """Equal but for case, spaces around and a full stop."""
    return answer.strip().rstrip(".").lower() == wanted.strip().rstrip(".").lower()


def blind_answers(test: Sequence[Conversation], train: Sequence[Conversation]) -> list[str]:
    """For each first question its most frequent answer in `train`, or the most frequent of all for a new question."""
    overall: Counter[str] = Counter()
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for one in train:
        for question, answer in one.turns:
            seen[_words(question)][answer] += 1
            overall[answer] += 1
    return [seen.get(_words(one.turns[0][0]), overall).most_common(1)[0][0] for one in test]


def first_pictures(one: Conversation) -> tuple[str, ...]:
    """The pictures that the first question names."""
    return one.images[: one.turns[0][0].count("<image>")]


def other_pictures(test: Sequence[Conversation], *, seed: int) -> list[tuple[str, ...] | None]:
    """Other pictures for each first question; None where there are none to show.

    Among questions with the same number of pictures the distinct ones are put in random order and each passed to the
    next.
    """
    order = random.Random(seed)
    after: dict[tuple[str, ...], tuple[str, ...]] = {}
    for count in sorted({len(first_pictures(one)) for one in test} - {0}):
        distinct = list(dict.fromkeys(first_pictures(one) for one in test if len(first_pictures(one)) == count))
        order.shuffle(distinct)
        if len(distinct) > 1:
            after |= {images: distinct[(i + 1) % len(distinct)] for i, images in enumerate(distinct)}
    return [after.get(first_pictures(one)) for one in test]


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _words(question: str) -> str:
    return question.replace("<image>", "").strip().lower()


def _by_type(test: Sequence[Conversation], given: Sequence[str]) -> dict[str, float]:
    hits: dict[str, list[bool]] = defaultdict(list)
    for one, answer in zip(test, given, strict=True):
        hits[one.kind].append(right(answer, one.turns[0][1]))
    return {kind: sum(values) / len(values) for kind, values in sorted(hits.items())}


def _see(model: VisionLanguageModel, paths: Sequence[str], patch_tokens: PatchTokens | None) -> Tensor | None:
    """Patch tokens of `paths`, each distinct picture encoded once; None if there are no pictures."""
    if not paths:
        return None
    distinct = list(dict.fromkeys(paths))
    tokens = (
        patch_tokens(distinct) if patch_tokens else model.encode(model.encoder.preprocess(distinct).to(model.device))[0]
    )
    row = {path: i for i, path in enumerate(distinct)}
    return tokens.to(model.device)[[row[path] for path in paths]]


def _tokens_per_image(model: VisionLanguageModel, images: Sequence[Sequence[str]]) -> int:
    size = model.encoder.preprocess.output_size
    if size is None:
        raise ValueError(
            "evaluation needs pictures of one size: give the encoder's preprocessing a crop, or image_size to load"
        )
    return model.num_image_tokens(*size) if any(images) else 0
