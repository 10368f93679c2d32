"""Conversations from a data set of the `datasets` library: on disk, as local files, or on the hub."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_vision.data.conversations.forms import check_media, form_of, images_first, turns_of, unread_keys
from vlm_vision.data.conversations.records import Conversation, LazyConversations, Opened, checked_conversation
from vlm_vision.data.stored_image import ImageSource, StoredImage


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
        path = stored["path"] if isinstance(stored, dict) else None
        if data is None and isinstance(path, str) and Path(path).is_file():
            return Path(path).read_bytes()
        if not isinstance(data, bytes):
            raise ValueError(f"image {self} has neither bytes nor a local file ({path}): embed the images")
        return data

    def head(self, size: int) -> bytes:
        stored = stored_images(self.dataset[self.row][self.column][0])[self.index]
        data = stored["bytes"] if hasattr(stored, "keys") else stored  # a struct, or bytes alone
        return data.as_buffer()[:size].to_pybytes() if data.is_valid else self.read()[:size]

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
    return open_data_set(source, split, subset=subset, image_folder=image_folder).rows


def open_data_set(source: str, split: str, *, subset: str | None, image_folder: str) -> Opened:
    """As `hf_dataset`."""
    dataset = load_data_set(source, split, subset)
    columns = dataset.column_names
    form = form_of(columns, source)
    images = [name for name in ("images", "image") if name in columns]
    if len(images) > 1:
        raise ValueError(f"{source} has the columns images and image: expected one of them, remove the other")
    if not images:
        check_media(dict.fromkeys(columns, True), source)
    texts = [name for name in columns if name in (form, "answer", "answers", "type")]
    name = f"{source}{f' ({subset})' if subset else ''} {split}"
    rows = _ConversationRows(
        dataset.with_format("arrow"), dataset._fingerprint, name, form, texts, next(iter(images), None), image_folder
    )
    unread = unread_keys([dict.fromkeys(columns, True)])
    return Opened(LazyConversations(rows, range(len(dataset))), {name: len(dataset) for name in unread})


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
            turns = images_first(turns_of(self.form, record, name), len(images))
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
