"""Conversations about images: the record of all sources, and easy-VQA."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from vlm_vision.data.conversations import easy_vqa as data_set
from vlm_vision.data.stored_image import ImageSource

Turns = tuple[tuple[str, str], ...]
"""Pairs (question, answer), in order."""


@dataclass(frozen=True)
class Conversation:
    """Questions about images, with their answers.

    `<image>` in the questions stands for the images, once for each.
    """

    images: tuple[ImageSource, ...]
    """The images, in the order of their `<image>`."""
    turns: Turns
    kind: str = "all"
    """Type of question, for evaluation by type."""
    name: str = ""
    """Name of the conversation in an error."""

    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages."""
        return [m for q, a in self.turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


class LazyConversations(Sequence[Conversation]):
    """Conversations that are made at access, so that a data set of any size needs no memory.

    A slice is also such a sequence. Pickles with its `make`, for the workers of a DataLoader.

    Args:
        make: row -> its conversation.
        rows: the rows, in order.
    """

    def __init__(self, make: Callable[[int], Conversation], rows: Sequence[int]):
        self.make, self.rows = make, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> "LazyConversations": ...
    def __getitem__(self, index: int | slice) -> "Conversation | LazyConversations":
        if isinstance(index, slice):
            return LazyConversations(self.make, self.rows[index])
        return self.make(self.rows[index])


@dataclass(frozen=True)
class Opened:
    """A source of conversations. Its rows are made at access, where a bad one raises ValueError."""

    rows: Sequence[Conversation]
    unread: Mapping[str, int] = field(default_factory=dict)
    """Key, column or suffix that is not read -> number of records that have it."""
    left_out: Sequence[str] = ()
    """Reason for each sample that is left out."""
    in_memory: bool = False
    """True for records that lie in memory as a whole: each is made once."""


def checked_conversation(images: tuple[ImageSource, ...], turns: Turns, kind: Any, name: str) -> Conversation:
    """A checked conversation: all texts are strings, and questions have one `<image>` for each image.

    Raises:
        ValueError: a check fails, or there is no turn.
    """
    if not turns:
        raise ValueError(f"{name} has no question with an answer: leave it out")
    if not all(isinstance(text, str) for turn in turns for text in turn):
        raise ValueError(f"{name}: every question and answer must be text")
    if any("<image>" in answer for _, answer in turns):
        raise ValueError(f"{name} has <image> in an answer: expected it in questions only")
    placeholders = sum(question.count("<image>") for question, _ in turns)
    if placeholders != len(images):
        raise ValueError(
            f"{name}: {placeholders} <image> in the questions but {len(images)} images; write one for each"
        )
    return Conversation(images, turns, kind if isinstance(kind, str) and kind else "all", name)


EASY_VQA_KINDS = {"yes": "yes/no", "no": "yes/no", "circle": "shape", "rectangle": "shape", "triangle": "shape"}


def easy_vqa(split: str) -> list[Conversation]:
    """The questions of easy-VQA, one each; `split` is "train" or "test". Kinds: yes/no, shape, color.

    Raises:
        ValueError: the package is not installed, or another split.
    """
    home = data_set.paths(split)
    return [
        Conversation(
            (home[image],),
            ((f"<image>\n{question}", answer),),
            EASY_VQA_KINDS.get(answer, "color"),
            f"easy-VQA {split} {i}",
        )
        for i, (question, answer, image) in enumerate(data_set.questions(split))
    ]


def regroup(conversations: Sequence[Conversation], turns: int, *, seed: int) -> Sequence[Conversation]:
    """Ask up to `turns` questions about the same image in one conversation, in random order.

    The image is then encoded and read once for all of them, as in LLaVA's instruction data. Only conversations whose
    first question begins with a separate line for the images are joined; all others stay as they are. With more than one
    turn, all conversations are made at once.
    """
    if turns <= 1:
        return conversations
    shuffled = random.Random(seed)
    by_image: dict[tuple[ImageSource, ...], list[Conversation]] = {}
    joined = []
    for one in conversations:
        if one.images and one.turns[0][0].startswith("<image>" * len(one.images) + "\n"):
            by_image.setdefault(one.images, []).append(one)
        else:
            joined.append(one)
    for images, group in by_image.items():
        shuffled.shuffle(group)
        for start in range(0, len(group), turns):
            part = group[start : start + turns]
            follow_up = tuple((q.replace("<image>", "").strip(), a) for one in part[1:] for q, a in one.turns)
            joined.append(Conversation(images, part[0].turns + follow_up, part[0].kind, part[0].name))
    return joined
