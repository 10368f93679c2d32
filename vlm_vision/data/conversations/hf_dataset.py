"""Conversations from a data set of the `datasets` library: on disk, as local files, or on the hub."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_vision.data.conversations.records import (
    Conversation,
    LazyConversations,
    Turns,
    checked_conversation,
    llava_turns,
)
from vlm_vision.data.stored_image import ImageSource, StoredImage

FORMS = "conversations (LLaVA), texts (the Cauldron, FineVision), messages (chat), or question with answer or answers"


@dataclass(frozen=True)
class Cell(StoredImage):
    """An image in a row of a data set."""

    source: str
    fingerprint: str
    row: int
    column: str
    index: int
    """Index among the images of the cell."""
    dataset: Any = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.source}, row {self.row}, {self.column} {self.index}"

    def read(self) -> bytes:
        stored = stored_images(self.dataset[self.row][self.column][0])[self.index].as_py()
        data = stored["bytes"] if isinstance(stored, dict) else stored
        path = Path(stored["path"] or "") if isinstance(stored, dict) else Path()
        if data is None and path.is_file():
            return path.read_bytes()
        if not isinstance(data, bytes):
            raise ValueError(f"image {self} has neither bytes nor a local file ({path}): embed the images")
        return data

    def version(self) -> str:
        return self.fingerprint


def hf_dataset(
    source: str, split: str = "train", *, subset: str | None = None, image_folder: str = ""
) -> Sequence[Conversation]:
    """The rows of one split, made at access; images stay encoded until they are opened.

    The columns determine the form of the rows: `conversations` (LLaVA), `texts` of {user, assistant} (the Cauldron, FineVision),
    `messages` of {role, content} with text or parts as content, or `question` with `answer` or `answers` (the most frequent
    is taken); images in `image` or `images`; `type` is an optional type of question. A system message goes before the
    first question. Where no question of a row holds `<image>` its images come first, one a line, as LLaVA puts them.

    Args:
        source: a folder written by `save_to_disk`, a local folder of parquet, JSON or other files that `datasets` knows, or
            a hub id.
        subset: the configuration of a hub id that has several.
        image_folder: folder of images that rows name by path.

    Raises:
        ValueError: `datasets` is not installed, no such data set, split or subset, or columns of no known form; on
            reading, a row that is not of its form.
    """
    dataset = load_data_set(source, split, subset)
    columns = dataset.column_names
    form = next((name for name in ("conversations", "texts", "messages", "question") if name in columns), None)
    if form is None or (form == "question" and not {"answer", "answers"} & set(columns)):
        raise ValueError(f"{source} has the columns {', '.join(columns)}: expected {FORMS}, and image or images")
    images = [name for name in ("images", "image") if name in columns]
    if len(images) > 1:
        raise ValueError(f"{source} has the columns images and image: expected one of them, remove the other")
    texts = [name for name in columns if name in (form, "answer", "answers", "type")]
    name = f"{source}{f' ({subset})' if subset else ''} {split}"
    rows = _ConversationRows(
        dataset.with_format("arrow"), dataset._fingerprint, name, form, texts, next(iter(images), None), image_folder
    )
    return LazyConversations(rows, range(len(dataset)))


@dataclass(frozen=True, eq=False)
class _ConversationRows:
    """Row -> conversation. Rows come as arrow tables, so that counting images reads no bytes of them."""

    dataset: Any
    fingerprint: str
    source: str
    form: str
    texts: list[str]
    image: str | None
    image_folder: str

    def __call__(self, row: int) -> Conversation:
        table, name = self.dataset[row], f"{self.source}, row {row}"
        record = {column: _listed(table[column][0].as_py()) for column in self.texts}
        images = self._images(table, row)
        try:
            turns = _TURNS[self.form](record, name)
            if images and turns and not any("<image>" in question for question, _ in turns):
                first = "\n".join(["<image>"] * len(images) + [turns[0][0]] * bool(turns[0][0]))
                turns = ((first, turns[0][1]), *turns[1:])
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"{name} is not of the form of its column {self.form} ({error!r}): leave it out") from None
        return checked_conversation(images, turns, record.get("type"), name)

    def _images(self, table: Any, row: int) -> tuple[ImageSource, ...]:
        if self.image is None:
            return ()
        cell = stored_images(table[self.image][0])
        return tuple(
            str(Path(self.image_folder) / one.as_py())
            if is_path(one)
            else Cell(self.source, self.fingerprint, row, self.image, i, self.dataset)
            for i, one in enumerate(cell)
        )


def _listed(value: Any) -> Any:
    """A list of records, also where `datasets` stores it as a record of lists, as for `Sequence({...})`."""
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return value


def stored_images(cell: Any) -> list[Any]:
    """The images of an arrow cell, one or a list, as arrow scalars."""
    import pyarrow

    several = isinstance(cell, pyarrow.ListScalar | pyarrow.LargeListScalar)
    return [one for one in ((cell.values or []) if several else [cell]) if one.is_valid]


def is_path(one: Any) -> bool:
    """Whether an arrow scalar is text: the path of an image."""
    import pyarrow

    return pyarrow.types.is_string(one.type) or pyarrow.types.is_large_string(one.type)


def _texts(record: dict[str, Any], name: str) -> Turns:
    return tuple((turn["user"], turn["assistant"]) for turn in record["texts"])


def _messages(record: dict[str, Any], name: str) -> Turns:
    said = [(message["role"], _content(message["content"])) for message in record["messages"]]
    if len(said) > 1 and said[0][0] == "system":
        (_, system), (role, question), *rest = said
        said = [(role, f"{system}\n{question}"), *rest]
    if len(said) % 2 or [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2):
        raise ValueError(f"{name}: messages must alternate user, assistant and end with assistant")
    return tuple((said[i][1], said[i + 1][1]) for i in range(0, len(said), 2))


def _content(content: str | list[dict[str, Any]]) -> str:
    """Text, or parts of type "text" and "image", an image on a separate line."""
    if isinstance(content, str):
        return content
    return "".join("<image>\n" if part["type"] == "image" else part["text"] for part in content).removesuffix("\n")


def _question(record: dict[str, Any], name: str) -> Turns:
    answers = record["answer"] if "answer" in record else record["answers"]
    each = [
        one["answer"] if isinstance(one, dict) else one for one in (answers if isinstance(answers, list) else [answers])
    ]
    return ((record["question"], Counter(each).most_common(1)[0][0]),)


_TURNS = {"conversations": llava_turns, "texts": _texts, "messages": _messages, "question": _question}


def load_data_set(source: str, split: str, subset: str | None, revision: str | None = None) -> Any:
    """One split of a data set of the `datasets` library; arguments and errors as `hf_dataset`.

    Args:
        revision: branch, tag or commit of a hub id.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise ValueError("data sets are read with `datasets`: pip install 'vlm-vision[data]'") from None
    folder = Path(source)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(source)
        else:
            found = datasets.load_dataset(source, subset, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} cannot be read, split {split}: {reason}") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(
                f"{source} has the splits {', '.join(map(str, found))}: expected one of them, not {split!r}"
            )
        return found[split]
    if found.split is not None and str(found.split) != split:
        raise ValueError(f"{source} holds the split {found.split}, not {split!r}: choose that one")
    return found
