"""The forms of a record: keys of its questions, answers and images. JSON files, shards and data sets share them."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from vlm_vision.data.conversations.records import Turns

FORMS = "conversations (LLaVA), texts (the Cauldron, FineVision), messages (chat), or question with answer or answers"
KEYS = ("conversations", "texts", "messages", "question")
"""Key that a form is known by, the first that a record has."""
IMAGES = ("image", "images")
"""Keys of the images."""
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Role in a record -> role in a chat."""

_READ = {*IMAGES, *KEYS, "answer", "answers", "type"}
_HARMLESS = set(
    "id ids idx index uid uuid key name question_id image_id answer_id conversation_id sample_id record_id source dataset "
    "data_source dataset_name origin split subset license url page_url metadata meta info extra model model_name generator width height "
    "size image_size image_width image_height original_width original_height category topic task subject lang language "
    "tag tags score scores rating difficulty caption captions answer_type question_type label labels sha256 md5 "
    "hash system tools choices options".split()
)
"""Keys that change nothing of the training if they are left out."""
_MEDIA = re.compile(
    r"(image|img|picture|photo|video|audio|frame|clip|media|pixel)(s|_?(path|file|filename|name|url|uri|list|b64|base64|bytes|data)s?)?"
)
_MEDIA_FILE = re.compile(r".+\.(jpe?g|png|webp|gif|bmp|tiff?|mp4|avi|mov|mkv|webm|mp3|wav|flac)", re.IGNORECASE)


def form_of(keys: Iterable[str], name: str) -> str:
    """The form of a record with these keys. Raises ValueError, with the nearest key, for none."""
    keys = [str(key) for key in keys]
    form = next((key for key in KEYS if key in keys), None)
    if form is None or (form == "question" and not {"answer", "answers"} & {*keys}):
        near = [one for key in keys for one in difflib.get_close_matches(key, KEYS[:3], n=1, cutoff=0.8)]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{name} has the columns {', '.join(keys)[:200]}: expected {FORMS}, and image or images{hint}")
    return form


def turns_of(form: str, record: Mapping[str, Any], name: str) -> Turns:
    """The turns of a record of a form.

    Raises:
        ValueError: turns that do not alternate, or an unknown role.
        TypeError, KeyError, AttributeError, IndexError: a record of another form.
    """
    return _TURNS[form](record, name)


def images_first(turns: Turns, count: int) -> Turns:
    """The turns, with the images before the first question, one a line, where no question has `<image>`."""
    if not count or not turns or any("<image>" in question for question, _ in turns):
        return turns
    first = "\n".join(["<image>"] * count + [turns[0][0]] * bool(turns[0][0]))
    return ((first, turns[0][1]), *turns[1:])


def images_in_parts(record: Mapping[str, Any]) -> list[Any]:
    """The images that parts of messages hold themselves, as {"type": "image", "image": ...}, in order."""
    found = []
    for message in record.get("messages") or ():
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image" and any(part.get(key) for key in ("image", "path", "url")):
                found.append(next(part[key] for key in ("image", "path", "url") if part.get(key)))
    return found


def unread_keys(records: Iterable[Any]) -> Counter[str]:
    """Key that is not read, and not known to change nothing -> number of records that have a value for it."""
    found: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Mapping):
            found.update(
                key for key in record if key not in _READ and key not in _HARMLESS and record[key] not in (None, "", [])
            )
    return found


def check_media(record: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for a record without images that has images or videos under a key that is not read."""
    for key, value in record.items():
        first = value[0] if isinstance(value, list) and value else value
        if key in _READ or key in _HARMLESS or first in (None, "", {}):
            continue
        is_file = isinstance(first, str) and _MEDIA_FILE.fullmatch(first) and not re.search(r"\s", first)
        if is_file or _MEDIA.fullmatch(str(key).lower()):
            raise ValueError(f"{name} has its images or videos under {key!r}, which is not read: rename it to images")


def llava_turns(record: Mapping[str, Any], name: str) -> Turns:
    """The turns of a record in LLaVA's form. Raises ValueError if they do not alternate."""
    said = [(turn.get("from"), turn["value"]) for turn in record.get("conversations") or []]
    return _paired(said, name, "conversations must alternate human, gpt, human, gpt and end with gpt", least=2)


def _messages(record: Mapping[str, Any], name: str) -> Turns:
    said = [(message["role"], _content(message["content"])) for message in record["messages"]]
    return _paired(said, name, "messages must alternate user, assistant and end with assistant", least=0)


def _paired(said: list[tuple[Any, Any]], name: str, rule: str, *, least: int) -> Turns:
    """Pairs of a question and its answer; a system message goes before the first question."""
    for i, (role, _) in enumerate(said):
        if role not in ROLES:
            raise ValueError(f"{name}: turn {i + 1} is of the role {role!r}: expected {', '.join(ROLES)}")
    said = [(ROLES[role], text) for role, text in said]
    if len(said) > 1 and said[0][0] == "system":
        (_, system), (role, question), *rest = said
        said = [(role, f"{system}\n{question}"), *rest]
    if len(said) < least or len(said) % 2 or [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2):
        raise ValueError(f"{name}: {rule}")
    return tuple((said[i][1], said[i + 1][1]) for i in range(0, len(said), 2))


def _content(content: str | list[dict[str, Any]]) -> str:
    """Text, or parts of type "text" and "image", an image on a separate line."""
    if isinstance(content, str):
        return content
    if unknown := {str(part["type"]) for part in content} - {"image", "text"}:
        raise ValueError(f"a message has a part of type {min(unknown)!r}: expected text and image")
    return "".join("<image>\n" if part["type"] == "image" else part["text"] for part in content).removesuffix("\n")


def _texts(record: Mapping[str, Any], name: str) -> Turns:
    return tuple((turn["user"], turn["assistant"]) for turn in record["texts"])


def _question(record: Mapping[str, Any], name: str) -> Turns:
    answers = record["answer"] if "answer" in record else record["answers"]
    each = [
        one["answer"] if isinstance(one, dict) else one for one in (answers if isinstance(answers, list) else [answers])
    ]
    return ((record["question"], Counter(each).most_common(1)[0][0]),)


_TURNS = {"conversations": llava_turns, "texts": _texts, "messages": _messages, "question": _question}
