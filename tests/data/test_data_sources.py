"""LLaVA files, WebDataset shards and data sets give the same conversations and the same pixels, one record at a time."""

import importlib.util
import io
import json
import logging
import pickle
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import make_image
from support.processes import fresh_context
from support.shards import write_tar
from torch.utils.data import DataLoader

from vlm_vision.data.conversations.read import read_conversations
from vlm_vision.data.conversations.records import Conversation, llava_json, regroup
from vlm_vision.data.conversations.webdataset import webdataset
from vlm_vision.data.shards.tar import TarMember
from vlm_vision.data.stored_image import open_stored_images
from vlm_vision.preprocess.images import load_image

TURNS = [("<image>\nwhat is it ?", "a cat"), ("is it red ?", "no")]
SAID = [{"from": who, "value": text} for turn in TURNS for who, text in zip(("human", "gpt"), turn, strict=True)]


def encoded(seed: int) -> bytes:
    """A JPEG that lies on its side and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    make_image(seed).save(file, "JPEG", exif=exif)
    return file.getvalue()


def records(number: int = 6) -> list[dict]:
    """In LLaVA's form, each with its own answer."""
    return [
        {"id": f"{i:04}", "image": f"{i:04}.jpg", "conversations": [*SAID[:3], {"from": "gpt", "value": f"no {i}"}]}
        for i in range(number)
    ]


def pixels(conversation: Conversation) -> list[np.ndarray]:
    return [np.asarray(load_image(one)) for one in open_stored_images(conversation.images)]


def all_pixels(conversations: list[Conversation]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(array.copy()) for one in conversations for array in pixels(one)])


def write_json(folder: Path) -> str:
    for i, record in enumerate(records()):
        (folder / record["image"]).write_bytes(encoded(i))
    (folder / "data.json").write_text(json.dumps(records()))
    return str(folder / "data.json")


def write_jsonl(folder: Path) -> str:
    write_json(folder)
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records())) + "\n")
    return str(folder / "data.jsonl")


def samples(number: int = 6) -> dict[str, bytes]:
    """Members of a shard."""
    return {
        f"{record['id']}.{suffix}": data
        for i, record in enumerate(records(number))
        for suffix, data in (("jpg", encoded(i)), ("json", json.dumps(record).encode()))
    }


def write_shards(folder: Path) -> str:
    writer = pytest.importorskip("webdataset").ShardWriter
    with writer(str(folder / "shard-%06d.tar"), maxcount=2, verbose=0) as sink:
        for i, record in enumerate(records()):
            sink.write({"__key__": record["id"], "jpg": encoded(i), "json": record})
    return str(folder / "shard-{000000..000002}.tar")


def table(columns: dict[str, list], *, several: bool = False):
    """A data set with the images of `records` embedded."""
    datasets = pytest.importorskip("datasets")
    bytes_ = [encoded(i) for i in range(len(next(iter(columns.values()))))]
    images = [[{"bytes": b, "path": None}] for b in bytes_] if several else [{"bytes": b, "path": None} for b in bytes_]
    made = datasets.Dataset.from_dict(columns | {"images" if several else "image": images})
    kind = datasets.Image()
    return made.cast_column("images", datasets.List(kind)) if several else made.cast_column("image", kind)


def write_folder(folder: Path) -> str:
    table({"conversations": [record["conversations"] for record in records()]}).save_to_disk(folder / "data")
    return str(folder / "data")


def write_parquet(folder: Path) -> str:
    (folder / "data").mkdir()
    made = table({"conversations": [record["conversations"] for record in records()]})
    made.to_parquet(folder / "data" / "train-00000.parquet")
    return str(folder / "data")


def user_and_assistant(record: dict) -> list[dict]:
    values = [turn["value"] for turn in record["conversations"]]
    return [{"user": values[i], "assistant": values[i + 1]} for i in range(0, len(values), 2)]


def write_texts(folder: Path) -> str:
    table({"texts": [user_and_assistant(record) for record in records()]}, several=True).save_to_disk(folder / "data")
    return str(folder / "data")


def parts(text: str) -> list[dict]:
    question = text.removeprefix("<image>\n")
    image = [{"type": "image", "text": None}] if question != text else []
    return [*image, {"type": "text", "text": question}]


def write_messages(folder: Path) -> str:
    roles = {"human": "user", "gpt": "assistant"}
    rows = [
        [{"role": roles[turn["from"]], "content": parts(turn["value"])} for turn in record["conversations"]]
        for record in records()
    ]
    table({"messages": rows}, several=True).save_to_disk(folder / "data")
    return str(folder / "data")


FORMS = {
    "jsonl": write_jsonl,
    "tar": lambda folder: write_tar(folder / "data.tar", samples()),
    "shards": write_shards,
    "folder": write_folder,
    "parquet": write_parquet,
    "texts": write_texts,
    "messages": write_messages,
}


@pytest.fixture(autouse=True)
def _no_cache_of_other_runs(tmp_path_factory, monkeypatch):
    if importlib.util.find_spec("datasets") is None:
        return
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_conversations_and_pixels(tmp_path, form):
    (tmp_path / "json").mkdir()
    reference = read_conversations(write_json(tmp_path / "json"))
    conversations = read_conversations(FORMS[form](tmp_path))
    assert len(conversations) == len(reference) == 6
    for one, same in zip(conversations, reference, strict=True):
        assert one.turns == same.turns and one.kind == same.kind
        (array,), (other,) = pixels(one), pixels(same)
        assert array.shape == (36, 40, 3) and (array == other).all()


@pytest.mark.parametrize("form", ["tar", "folder"])
def test_a_row_is_made_when_asked_for_and_only_its_image_is_read(tmp_path, monkeypatch, form):
    source = FORMS[form](tmp_path)
    conversations = read_conversations(source)
    kind, read, log = type(conversations[0].images[0]), type(conversations[0].images[0]).read, []
    monkeypatch.setattr(kind, "read", lambda self: log.append(str(self)) or read(self))
    one, last = conversations[2], conversations[-1]
    assert log == [] and last.turns[1] == ("is it red ?", "no 5")
    open_stored_images(one.images)
    assert log == [str(one.images[0])]
    some = conversations[1:5:2]
    assert len(some) == 2 and some[0] == conversations[1] and some[1] == conversations[3] and len(log) == 1
    with pytest.raises(IndexError):
        conversations[6]
    assert regroup(conversations, 1, seed=0) is conversations


@pytest.mark.parametrize("form", ["shards", "parquet"])
def test_images_have_their_own_names_that_stay_the_same(tmp_path, form):
    source = FORMS[form](tmp_path)
    first, second = read_conversations(source), read_conversations(source)
    images = [make_image for one in first for make_image in one.images]
    again = [make_image for one in second for make_image in one.images]
    assert images == again and len(set(images)) == len({str(one) for one in images}) == 6
    assert [str(one) for one in images] == [str(one) for one in again]
    assert [one.version() for one in images] == [one.version() for one in again]


@pytest.mark.parametrize("form", ["shards", "parquet"])
def test_workers_read_what_the_main_process_reads(tmp_path, form):
    conversations = read_conversations(FORMS[form](tmp_path))
    alone = list(DataLoader(conversations, batch_size=2, collate_fn=all_pixels))
    forked = list(DataLoader(conversations, batch_size=2, collate_fn=all_pixels, num_workers=2))
    torch.testing.assert_close(forked, alone, rtol=0, atol=0)


def test_a_new_process_reads_what_this_one_reads(tmp_path):
    (tmp_path / "other").mkdir()
    shards, folder = read_conversations(write_shards(tmp_path)), read_conversations(write_folder(tmp_path / "other"))
    both = [*shards, *folder]
    loader = DataLoader(
        both, batch_size=6, collate_fn=all_pixels, num_workers=1, multiprocessing_context=fresh_context()
    )
    torch.testing.assert_close(list(loader), [all_pixels(both[:6]), all_pixels(both[6:])], rtol=0, atol=0)


def test_captions_are_answers_to_the_image_alone(tmp_path):
    members = {
        "a.png": b"",
        "a.txt": b"\xef\xbb\xbf a red cat\n",
        "b.JPG": b"",
        "b.json": b'{"caption": "a dog", "url": ""}',
    }
    one, two = webdataset(write_tar(tmp_path / "x.tar", members))
    assert one.turns == (("<image>", "a red cat"),) and two.turns == (("<image>", "a dog"),)
    assert str(two.images[0]) == f"{tmp_path}/x.tar/b.JPG"


def test_a_member_may_have_a_long_name_and_its_text_may_stand_elsewhere(tmp_path):
    key = "folder/" + "long" * 60
    members = {f"{key}.jpg": encoded(1), "b.jpg": encoded(2), f"{key}.txt": b"one", "b.txt": b"two"}
    one, two = webdataset(write_tar(tmp_path / "x.tar", members))
    assert (one.turns[0][1], two.turns[0][1]) == ("one", "two")
    assert isinstance(one.images[0], TarMember) and one.images[0].read() == encoded(1)


def test_samples_without_image_or_text_are_left_out_and_counted(tmp_path, caplog):
    bad = {
        "no_text.jpg": encoded(0),
        "no_picture.txt": b"words",
        "empty.jpg": encoded(0),
        "empty.txt": b" ",
        "null.jpg": encoded(0),
        "null.json": b'{"caption": null}',
        "broken.jpg": encoded(0),
        "broken.json": b'{"conv',
        "list.jpg": encoded(0),
        "list.json": b"[1]",
        "turns.jpg": encoded(0),
        "turns.json": b'{"conversations": [{"from": "gpt", "value": "a"}]}',
        "answer.jpg": encoded(0),
        "answer.txt": b"an <image>",
    }
    good = {"fallback.jpg": encoded(0), "fallback.json": b"{}", "fallback.txt": b"words"}
    with caplog.at_level(logging.WARNING):
        (only,) = webdataset(write_tar(tmp_path / "x.tar", bad | good))
    assert only.turns == (("<image>", "words"),)
    assert f"8 of 9 samples left out; the first: {tmp_path}/x.tar/no_text has no text" in caplog.text


@pytest.mark.parametrize("size", [200, 512, 1024, 3000, 30_000])
def test_a_shard_that_was_cut_short_is_refused(tmp_path, size):
    whole = Path(write_tar(tmp_path / "x.tar", samples(40))).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:size])
    with pytest.raises(ValueError, match="x.tar (is not a complete, uncompressed tar file|ends after .* bytes without)"):
        webdataset(str(tmp_path / "x.tar"))


def test_a_shard_that_ends_between_two_members_is_refused(tmp_path):
    whole = Path(write_tar(tmp_path / "x.tar", samples(4)))
    with tarfile.open(whole) as tar:
        end = tar.getmembers()[4].offset
    whole.write_bytes(whole.read_bytes()[:end])
    with pytest.raises(ValueError, match=f"ends after {end} bytes without the end mark"):
        webdataset(str(whole))


def test_a_shard_that_changes_after_indexing_is_refused(tmp_path):
    conversations = webdataset(write_tar(tmp_path / "x.tar", samples(4)))
    (make_image,) = conversations[3].images
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:1000])
    with pytest.raises(ValueError, match="0003.jpg is cut short: .* changed after it was indexed"):
        open_stored_images([make_image])
    (tmp_path / "x.tar").unlink()
    with pytest.raises(ValueError, match="x.tar cannot be opened"):
        conversations[3]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("https://host/shard-{000..010}.tar", "download them first"),
        ("none-*.tar", "no file matches"),
        ("none-{0..1}.tar", "none-0.tar cannot be opened"),
        ("packed.tar", "is not a complete, uncompressed tar file"),
        ("empty.tar", "holds no sample"),
    ],
)
def test_shards_that_cannot_be_read_are_refused(tmp_path, monkeypatch, pattern, says):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "empty.tar", {})
    with tarfile.open("packed.tar", "w:gz") as tar:
        tar.add("empty.tar")
    with pytest.raises(ValueError, match=says):
        webdataset(pattern)


def test_patterns_name_shards_as_in_a_shell(tmp_path):
    names = ["a-08", "a-09", "a-10", "b-08"]
    for name in names:
        write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": b"", f"{name}.txt": name.encode()})

    def read(*patterns: str) -> list[str]:
        return [one.turns[0][1] for one in webdataset([f"{tmp_path}/{pattern}" for pattern in patterns])]

    assert read("a-{08..10}.tar") == names[:3] and read("{b,a}-08.tar") == ["b-08", "a-08"]
    assert read("*.tar") == names and read("a-10.tar", "b-*.tar") == ["a-10", "b-08"]


def test_a_file_that_is_there_is_no_pattern(tmp_path):
    (tmp_path / "{a,b}").mkdir()
    path = tmp_path / "{a,b}" / "c.tar"
    write_tar(path, {"0.jpg": b"", "0.txt": b"red"})
    assert (
        [one.turns[0][1] for one in webdataset(path)] == [one.turns[0][1] for one in webdataset(str(path))] == ["red"]
    )


def test_a_damaged_stored_image_is_named(tmp_path, monkeypatch):
    members = {"a.jpg": encoded(0)[:400], "a.txt": b"cut", "b.jpg": b"words", "b.txt": b"no image"}
    cut, none = webdataset(write_tar(tmp_path / "x.tar", members))
    with pytest.raises(ValueError, match="image .*x.tar/a.jpg cannot be decoded"):
        open_stored_images(cut.images)
    with pytest.raises(ValueError, match="x.tar/b.jpg cannot be decoded .unknown format."):
        open_stored_images(none.images)
    large = webdataset(write_tar(tmp_path / "y.tar", samples(1)))[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="at most PIL.Image.MAX_IMAGE_PIXELS"):
        open_stored_images(large.images)


def saved(folder: Path, columns: dict[str, list], **options):
    table(columns, **options).save_to_disk(folder / "data")
    return read_conversations(str(folder / "data"))


def test_images_that_no_question_names_come_first(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "images": [["a.png", "b.png"], ["a.png"], []],
        "texts": [
            [{"user": "which ?", "assistant": "a"}],
            [{"user": "", "assistant": "b"}],
            [{"user": "?", "assistant": "c"}],
        ],
        "type": ["x", None, "y"],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "data")
    two, one, none = read_conversations(str(tmp_path / "data"), images="pictures")
    assert two == Conversation(
        ("pictures/a.png", "pictures/b.png"), (("<image>\n<image>\nwhich ?", "a"),), "x", two.name
    )
    assert one.turns == (("<image>", "b"),) and one.kind == "all"
    assert none.images == () and none.turns == (("?", "c"),)


@pytest.mark.parametrize(
    ("column", "answer", "chosen"),
    [("answer", "red", "red"), ("answers", ["a", "b", "b"], "b"), ("answers", [{"answer": "a"}, {"answer": "b"}], "a")],
)
def test_questions_have_their_most_frequent_answer(tmp_path, column, answer, chosen):
    (one,) = saved(tmp_path, {"question": ["what ?"], column: [answer]})
    assert one.turns == (("<image>\nwhat ?", chosen),)


def test_a_record_of_lists_is_a_list_of_records(tmp_path):
    (one,) = saved(tmp_path, {"conversations": [{"from": ["human", "gpt"], "value": ["what ?", "red"]}]})
    assert one.turns == (("<image>\nwhat ?", "red"),)


def test_a_system_message_goes_before_the_first_question(tmp_path):
    said = [("system", "be brief"), ("user", "what ?"), ("assistant", "red")]
    (one,) = saved(tmp_path, {"messages": [[{"role": role, "content": text} for role, text in said]]})
    assert one.turns == (("<image>\nbe brief\nwhat ?", "red"),)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"messages": [[{"role": "user", "content": "what ?"}]]}, "row 0: messages must alternate user, assistant"),
        ({"messages": [[{"role": "system", "content": "what ?"}]]}, "row 0: messages must alternate"),
        ({"messages": [[]]}, "row 0 has no question with an answer"),
        ({"texts": [[{"user": "what ?"}]]}, "row 0 is not of the form of its column texts"),
        ({"texts": [[{"user": "<image> <image>", "assistant": "a"}]]}, "row 0: 2 <image> in the questions but 1"),
        ({"texts": [[{"user": "what ?", "assistant": "<image>"}]]}, "row 0 has <image> in an answer"),
        ({"question": ["what ?"], "answer": [3]}, "row 0: every question and answer must be text"),
        ({"question": ["what ?"], "answers": [[]]}, "row 0 is not of the form"),
    ],
)
def test_a_row_that_is_not_of_its_form_is_named(tmp_path, columns, says):
    with pytest.raises(ValueError, match=says):
        saved(tmp_path, columns)[0]


def test_columns_of_no_known_form_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has the columns caption, image: expected conversations"):
        saved(tmp_path, {"caption": ["a"]})
    with pytest.raises(ValueError, match="has the columns question, image: expected"):
        saved(tmp_path / "b", {"question": ["a"]})
    with pytest.raises(ValueError, match="has the columns images and image: expected one of them"):
        saved(tmp_path / "c", {"question": ["a"], "answer": ["b"], "images": [["a.png"]]})


def test_another_split_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = table({"texts": [user_and_assistant(one) for one in records(1)]})
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "data")
    assert len(read_conversations(str(tmp_path / "data"), split="test")) == 1
    with pytest.raises(ValueError, match="has the splits train, test: expected one of them, not 'val'"):
        read_conversations(str(tmp_path / "data"), split="val")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="val"):
        read_conversations(write_parquet(tmp_path / "other"), split="val")


def test_an_image_without_bytes_is_its_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "question": "what ?", "answer": "red"}))
    (one,) = read_conversations(str(tmp_path))
    assert one.turns == (("<image>\nwhat ?", "red"),)
    (stored,) = one.images
    assert not isinstance(stored, str) and stored.read() == encoded(1)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ValueError, match="row 0, image 0 has neither bytes nor a local file"):
        open_stored_images(one.images)


def test_a_source_of_no_known_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a source of conversations: expected easy_vqa, "):
        read_conversations(str(tmp_path / "data.xml"))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'vlm-vision\[data\]'"):
        read_conversations(str(tmp_path))


def test_a_bad_line_of_jsonl_is_named(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps(records(1)[0]) + '\n\n{"id"\n')
    with pytest.raises(ValueError, match="data.jsonl, line 3, is not valid JSON"):
        llava_json(tmp_path / "data.jsonl", tmp_path)
