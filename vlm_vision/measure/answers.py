"""Accuracy of a model's answers by type of question, with two controls.

Blind: the most frequent training answer to each question, no image. Shuffled: the model, shown another image. A
model that uses its images is better than the first, and as bad as it with shuffled images.

`teacher_forced` is the quick measurement during training: loss and right answers of a batch in one forward pass.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from vlm_vision.data.conversations.labels import IGNORED
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.data.stored_image import ImageSource, open_stored_images
from vlm_vision.encoder import eval_mode
from vlm_vision.vlm.model import VisionLanguageModel

PatchTokens = Callable[[Sequence[ImageSource]], Tensor]
"""Images -> their patch tokens, (len(images), N, D)."""


@dataclass(frozen=True)
class Report:
    """Accuracies from 0 to 1; by type of question in the same order everywhere."""

    counts: dict[str, int]
    accuracy: float
    by_type: dict[str, float]
    blind: float
    blind_by_type: dict[str, float]
    shuffled: float | None
    """Accuracy with the images of other questions, over the questions that have such images; None if none has."""
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


@dataclass(frozen=True)
class TeacherForcedCounts:
    """Sums over answers whose tokens were predicted from the right ones before them."""

    loss: float = 0.0
    """Sum of -log p over answer tokens."""
    tokens: int = 0
    right: int = 0
    """Answers in which every token was the most probable one, as in greedy decoding."""
    answers: int = 0

    def __add__(self, other: "TeacherForcedCounts") -> "TeacherForcedCounts":
        return TeacherForcedCounts(
            self.loss + other.loss, self.tokens + other.tokens, self.right + other.right, self.answers + other.answers
        )

    @property
    def loss_per_token(self) -> float:
        return self.loss / max(1, self.tokens)

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.answers)


@torch.no_grad()
def teacher_forced(model: nn.Module, batch: dict[str, Tensor]) -> TeacherForcedCounts:
    """Loss and right answers of a batch of the collator, padded on either side or packed, in one forward pass.

    An answer is an unbroken run of labels. Every module's mode is put back afterwards.

    Args:
        model: a `VisionLanguageModel`, wrapped or not.
        batch: its inputs, and labels (B, T) with -100 where there is no answer.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"][:, 1:]
    answer = labels != IGNORED
    begins = answer.clone()
    begins[:, 1:] &= ~answer[:, :-1]
    which = begins.flatten().cumsum(0).view_as(labels) - 1  # which answer of the batch a label belongs to
    predicts = answer.any(dim=0).nonzero().squeeze(1)
    with eval_mode(model):
        logits = model(**inputs, logits_to_keep=predicts, use_cache=False).logits
    if logits.shape[1] != len(predicts):  # a language model without logits_to_keep
        logits = logits[:, predicts]
    kept = answer[:, predicts]
    logits, wanted, which = logits[kept].float(), labels[:, predicts][kept], which[:, predicts][kept]
    wrong = which[logits.argmax(dim=-1) != wanted].unique()
    answers = int(begins.sum())
    loss = F.cross_entropy(logits, wanted, reduction="sum").item()
    return TeacherForcedCounts(loss, len(wanted), answers - len(wrong), answers)


@torch.no_grad()
def answers(
    model: VisionLanguageModel,
    conversations: Sequence[Conversation],
    *,
    images: Sequence[Sequence[ImageSource]] | None = None,
    patch_tokens: PatchTokens | None = None,
    batch_size: int = 128,
    max_new_tokens: int = 16,
    name: str = "answering",
) -> list[str]:
    """Greedy answers to the last question of each conversation, after the right answers to those before it.

    Args:
        images: images to show instead of the conversations' own.
        patch_tokens: reads the images' tokens where they are cached; default they are encoded.
    """
    if model.processor is None:
        raise ValueError("this model has no processor: load it from a folder with a tokenizer, or set model.processor")
    model.eval()
    shown = [tuple(given) for given in images] if images is not None else [one.images for one in conversations]
    prompts = [
        model.processor.apply_chat_template(one.messages()[:-1], add_generation_prompt=True) for one in conversations
    ]
    found = [""] * len(prompts)
    by_image = sorted(range(len(prompts)), key=lambda i: [str(image) for image in shown[i]])  # encoded about once
    for start in tqdm(range(0, len(prompts), batch_size), desc=name, unit="batch", leave=False):
        rows = by_image[start : start + batch_size]
        batch = _inputs(model, [prompts[i] for i in rows], [one for i in rows for one in shown[i]], patch_tokens)
        out = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        new = out[:, batch["input_ids"].shape[1] :]
        for i, text in zip(rows, model.processor.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
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
    """The report on `test`, of `each_question`, and the model's answers. `train` is what the blind answers are learned from."""
    options: dict[str, Any] = dict(patch_tokens=patch_tokens, batch_size=batch_size, max_new_tokens=max_new_tokens)
    given = answers(model, test, **options)
    other = other_images(test, seed=seed)
    swapped = [one for one, images in zip(test, other, strict=True) if images is not None]
    shown = [images for images in other if images is not None]
    confused = answers(model, swapped, images=shown, name="answering, images shuffled", **options)
    by_type = _by_type(test, given)
    shuffled_by_type = _by_type(swapped, confused)
    counts = dict(sorted(Counter(one.kind for one in test).items()))

    def overall(asked: Sequence[Conversation], said: Sequence[str]) -> float | None:
        hits = [is_correct(answer, one.turns[-1][1]) for one, answer in zip(asked, said, strict=True)]
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


def is_correct(answer: str, wanted: str) -> bool:
    """Equal but for case, spaces around and a full stop."""
    return answer.strip().rstrip(".").lower() == wanted.strip().rstrip(".").lower()


def blind_answers(test: Sequence[Conversation], train: Sequence[Conversation]) -> list[str]:
    """For each last question its most frequent answer in `train`, or the most frequent of all for a new question."""
    overall: Counter[str] = Counter()
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for one in train:
        for question, answer in one.turns:
            seen[_words(question)][answer] += 1
            overall[answer] += 1
    return [seen.get(_words(one.turns[-1][0]), overall).most_common(1)[0][0] for one in test]


def each_question(conversations: Iterable[Conversation]) -> Iterator[Conversation]:
    """A conversation for each question, which is its last one. Captions, questions without words, are left out: an exact
    match says nothing of them."""
    for one in conversations:
        images = 0
        for i, (question, _) in enumerate(one.turns):
            images += question.count("<image>")
            if _words(question):
                yield replace(one, images=one.images[:images], turns=one.turns[: i + 1])


def other_images(test: Sequence[Conversation], *, seed: int) -> list[tuple[ImageSource, ...] | None]:
    """Other images for each conversation; None where there are none to show."""
    return shuffled_images([one.images for one in test], seed=seed)


def shuffled_images(shown: Sequence[tuple[ImageSource, ...]], *, seed: int) -> list[tuple[ImageSource, ...] | None]:
    """Other images in the place of each; None where there are none.

    Among those of the same number the distinct ones are put in random order and each passed to the next.
    """
    order = random.Random(seed)
    after: dict[tuple[ImageSource, ...], tuple[ImageSource, ...]] = {}
    for count in sorted({len(images) for images in shown} - {0}):
        distinct = list(dict.fromkeys(images for images in shown if len(images) == count))
        order.shuffle(distinct)
        if len(distinct) > 1:
            after |= {images: distinct[(i + 1) % len(distinct)] for i, images in enumerate(distinct)}
    return [after.get(images) for images in shown]


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _words(question: str) -> str:
    return question.replace("<image>", "").strip().lower()


def _by_type(test: Sequence[Conversation], given: Sequence[str]) -> dict[str, float]:
    hits: dict[str, list[bool]] = defaultdict(list)
    for one, answer in zip(test, given, strict=True):
        hits[one.kind].append(is_correct(answer, one.turns[-1][1]))
    return {kind: sum(values) / len(values) for kind, values in sorted(hits.items())}


def _inputs(
    model: VisionLanguageModel, prompts: Sequence[str], images: Sequence[ImageSource], patch_tokens: PatchTokens | None
) -> dict[str, Tensor]:
    """What the model is given. Where every image has one canvas, each distinct one is encoded once."""
    processor: Any = model.processor
    size = processor.image_processor.canvas_size
    if not images or size is None:
        return processor(text=list(prompts), images=open_stored_images(images), return_tensors="pt").to(model.device)
    distinct = list(dict.fromkeys(images))
    if patch_tokens:
        tokens = patch_tokens(distinct)
    else:
        ((tokens, _),) = model.encode(model.encoder.preprocess(open_stored_images(distinct)).to(model.device))
    row = {image: i for i, image in enumerate(distinct)}
    texts = processor.expand(prompts, [model.num_image_tokens(*size)] * len(images))
    bos = processor.tokenizer.bos_token
    batch = processor.tokenizer(
        texts,
        padding=True,
        return_tensors="pt",
        add_special_tokens=not (bos and all(text.startswith(bos) for text in texts)),
        return_token_type_ids=False,
    )
    seen = tokens[[row[image] for image in images]]
    return {**batch.to(model.device), "patch_tokens": seen.to(model.device)}
