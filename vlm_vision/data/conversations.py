"""Conversations about pictures, from LLaVA's JSON or from easy-VQA."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Conversation:
    """Questions about pictures, with their answers.

    The first question names its pictures by `<image>`, once for each.
    """

    images: tuple[str, ...]
    """Paths of the pictures, in the order of their `<image>`."""
    turns: tuple[tuple[str, str], ...]
    """(question, answer), in order."""
    kind: str = "all"
    """Type of question, for evaluation by type."""
    name: str = ""
    """What to call it in an error."""

    def messages(self) -> list[dict[str, str]]:
        """As chat messages."""
        return [m for q, a in self.turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


def llava_json(file: str | Path, image_folder: str | Path) -> list[Conversation]:
    """Read LLaVA's format: a list of {"id", "image", "conversations": [{"from": "human"|"gpt", "value"}]}.

    "image" may be one path, a list, or absent (text only); "type" is an optional type of question.

    Raises:
        ValueError: no such file, no JSON list, turns that do not alternate, or placeholders unlike pictures in number.
    """
    file, image_folder = Path(file), Path(image_folder)
    if not file.is_file():
        raise ValueError(f"there is no file {file}: give the JSON list of conversations")
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): expected a list of conversations") from None
    if not isinstance(records, list) or not records:
        raise ValueError(f"{file} holds no JSON list of conversations")
    return [_conversation(record, i, file, image_folder) for i, record in enumerate(records)]


def _conversation(record: dict, index: int, file: Path, image_folder: Path) -> Conversation:
    name = f"{file.name}, record {record.get('id', index) if isinstance(record, dict) else index}"
    try:
        return _checked(record, name, image_folder)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{name} is not as LLaVA writes it ({error!r}): expected id, image and conversations"
        ) from None


def _checked(record: dict, name: str, image_folder: Path) -> Conversation:
    images = record.get("image") or []
    images = tuple(str(image_folder / image) for image in ([images] if isinstance(images, str) else images))
    said = record.get("conversations") or []
    if len(said) < 2 or len(said) % 2 or [turn.get("from") for turn in said] != ["human", "gpt"] * (len(said) // 2):
        raise ValueError(f"{name}: conversations must alternate human, gpt, human, gpt and end with gpt")
    turns = tuple((said[i]["value"], said[i + 1]["value"]) for i in range(0, len(said), 2))
    if not all(isinstance(text, str) for turn in turns for text in turn):
        raise ValueError(f"{name}: every value must be text")
    placeholders = sum(question.count("<image>") for question, _ in turns)
    if placeholders != len(images):
        raise ValueError(
            f"{name}: {placeholders} <image> in the questions but {len(images)} pictures; write one for each"
        )
    return Conversation(images, turns, record.get("type", "all"), name)


EASY_VQA_KINDS = {"yes": "yes/no", "no": "yes/no", "circle": "shape", "rectangle": "shape", "triangle": "shape"}


def easy_vqa(split: str) -> list[Conversation]:
    """The easy-VQA data set (PyPI `easy-vqa`, MIT), one question each; `split` is "train" or "test".

    Kinds: yes/no, shape, color.

    Raises:
        ValueError: the package is not installed, or another split.
    """
    try:
        import easy_vqa as package  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("easy-VQA is not installed: pip install 'vlm-vision[demo]'") from None
    if split not in ("train", "test"):
        raise ValueError(f"easy-VQA has no split {split!r}: expected 'train' or 'test'")
    questions = package.get_train_questions if split == "train" else package.get_test_questions
    paths = package.get_train_image_paths if split == "train" else package.get_test_image_paths
    home = paths()
    return [
        Conversation(
            (home[image],),
            ((f"<image>\n{question}", answer),),
            EASY_VQA_KINDS.get(answer, "color"),
            f"easy-VQA {split} {i}",
        )
        for i, (question, answer, image) in enumerate(zip(*questions(), strict=True))
    ]


def regroup(conversations: Sequence[Conversation], turns: int, *, seed: int) -> list[Conversation]:
    """Ask up to `turns` questions about the same picture in one conversation, in random order.

    The picture is then encoded and read once for all of them, as in LLaVA's instruction data. Only conversations whose
    first question begins with a line of its own for the pictures are joined; all others stay as they are.
    """
    if turns <= 1:
        return list(conversations)
    shuffled = random.Random(seed)
    by_image: dict[tuple[str, ...], list[Conversation]] = {}
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
