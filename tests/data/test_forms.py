"""Spellings of records that are read, and those that are refused because their images would not be seen."""

import json
import logging
import tarfile
from pathlib import Path

import pytest
from support.shards import encoded, write_tar

from vlm_vision.data.conversations.read import open_conversations, read_conversations
from vlm_vision.data.images.samples import read_samples

ASK = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "red"}]
TURNS = (("<image>\nwhat ?", "red"),)
CHAT = [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "red"}]
PARTS = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "what ?"}]}, CHAT[1]]


def read(folder: Path, *records: dict):
    (folder / "data.json").write_text(json.dumps(records))
    return read_conversations(str(folder / "data.json"))


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.png", "conversations": ASK},
        {"images": ["a.png"], "conversations": ASK},
        {"images": "a.png", "image": None, "conversations": ASK},
        {"images": ["a.png"], "conversations": [{**ASK[0], "from": "user"}, {**ASK[1], "from": "assistant"}]},
        {"images": ["a.png"], "messages": CHAT},
        {"messages": PARTS},
        {"image": "a.png", "texts": [{"user": "what ?", "assistant": "red"}]},
        {"image": "a.png", "question": "what ?", "answers": ["red", "red", "blue"]},
    ],
)
def test_the_common_spellings_are_one_conversation(tmp_path, record):
    (one,) = read(tmp_path, record)
    assert one.images == (f"{tmp_path}/a.png",) and one.turns == TURNS


def test_a_system_turn_goes_before_the_first_question(tmp_path):
    (one,) = read(tmp_path, {"image": "a.png", "conversations": [{"from": "system", "value": "be brief"}, *ASK]})
    assert one.turns == (("be brief\n<image>\nwhat ?", "red"),)


PLAIN = [{"from": "human", "value": "what ?"}, ASK[1]]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"image_path": "a.png", "conversations": PLAIN}, "record 0 has its images or videos under 'image_path', which is not read"),
        ({"picture": ["a.png"], "conversations": PLAIN}, "under 'picture'"),
        ({"video": "a.mp4", "conversations": PLAIN}, "under 'video'"),
        ({"view": "a/b.JPG", "conversations": PLAIN}, "under 'view'"),
        ({"image": "a.png", "images": ["b.png"], "conversations": ASK}, "has image and images: expected one of them"),
        ({"image": "https://host/a.png", "conversations": ASK}, "which is no path: save it as a file"),
        ({"image": [3], "conversations": ASK}, "has a int among its images"),
        ({"image": "a.png", "conversation": ASK}, "columns image, conversation: expected .*; did you mean conversations?"),
        ({"image": "a.png", "conversations": [{**ASK[0], "from": "bot"}, ASK[1]]}, "turn 1 is of the role 'bot': expected human"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}, CHAT[1]]}, "part of type 'video'"),
    ],
)  # fmt: skip
def test_what_would_train_blind_is_refused(tmp_path, record, says):
    with pytest.raises(ValueError, match=says):
        read(tmp_path, record)


def test_keys_that_are_not_read_are_in_a_warning(tmp_path, caplog):
    records = [{"id": i, "image": "a.png", "conversations": ASK, "weight": i, "boxes": [] if i else [1]} for i in range(3)]
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path, *records)) == 3
    assert "not read are the keys weight (3 records), boxes (1 records)" in caplog.text


def test_a_bad_record_does_not_hide_the_others(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"image": "a.png", "conversations": ASK}, {"conversations": 3}]))
    opened = open_conversations(str(tmp_path / "data.json"))
    assert opened.rows[0].turns == TURNS
    with pytest.raises(ValueError, match="record 1 is not in LLaVA's form"):
        opened.rows[1]


DOTTED = {f"page.{i:02}.{end}": data for i in range(3) for end, data in (("png", encoded(i)), ("txt", b"words"))}


def test_a_second_dot_is_named_and_members_are_counted(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"3 samples are left out, the first: .*page.00.png has a second dot in its name"):
        read_conversations(write_tar(tmp_path / "x.tar", DOTTED))
    with pytest.raises(ValueError, match="hold no image"), caplog.at_level(logging.WARNING):
        read_samples(str(tmp_path / "x.tar"))
    assert "3 of 3 samples have no image; the first:" in caplog.text and "page.00.png (its name has a second dot)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # of one key, whose own sample is read
        (one,) = read_conversations(write_tar(tmp_path / "y.tar", DOTTED | {"page.png": encoded(9), "page.txt": b"own"}))
    assert one.turns[0][1] == "own" and "3 of 4 samples left out" in caplog.text
    caplog.clear()
    mask = {"a.png": encoded(0), "a.txt": b"words", "a.mask.png": encoded(1)}
    with caplog.at_level(logging.WARNING):
        assert len(read_conversations(write_tar(tmp_path / "z.tar", mask))) == 1
    assert "left out" not in caplog.text and "not read are the keys *.mask.png (1 records)" in caplog.text


@pytest.mark.parametrize(
    ("names", "says"), [(("a.png", "a.png"), "holds the member a.png twice"), (("a.png", "a.PNG"), "a.png and a.PNG, which are one")]
)
def test_a_member_that_comes_twice_is_refused(tmp_path, names, says):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in (*names, "a.txt"):
            (tmp_path / "data").write_bytes(encoded(0))
            tar.add(tmp_path / "data", name)
    for reader in (read_conversations, read_samples):
        with pytest.raises(ValueError, match=says):
            reader(str(tmp_path / "x.tar"))
