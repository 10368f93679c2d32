"""The check of data: what it counts, what stops a run, what is doubtful."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from support.models import make_image
from support.robot_episodes import some_episodes
from support.shards import encoded, write_tar

from vlm_vision.cli.main import main
from vlm_vision.data.check.conversations import check_conversations, check_lengths, usable
from vlm_vision.data.check.report import DataReport
from vlm_vision.data.check.robot import check_robot, clipped_shares
from vlm_vision.data.check.source import check_source, kind_of, state_of
from vlm_vision.data.conversations.labels import ChatLabels
from vlm_vision.data.conversations.read import open_conversations
from vlm_vision.data.lerobot import read_dataset, write_dataset
from vlm_vision.robot.normalize import Normalizer
from vlm_vision.robot.statistics import Statistics


def record(image: str | None, answer: str = "red", **more) -> dict:
    turns = [{"from": "human", "value": "<image>\nwhat ?" if image else "what ?"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns, **more}


def talk(folder: Path, *records: dict) -> str:
    for i in range(3):
        make_image(i, 40 + i, 36).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "cut.jpg").write_bytes(encoded(0)[:-200])
    (folder / "folder.png").mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(records))
    return str(folder / "data.json")


def test_each_bad_record_is_counted_and_named_and_the_others_are_kept(tmp_path):
    source = talk(
        tmp_path, record("0.png", id="a"), record("none.png", id="b"), record("broken.png", id="c"), {"conversations": 3},
        record("1.png"), record("folder.png"), record(None, "blue"),
    )  # fmt: skip
    opened = open_conversations(source)
    report = check_conversations(source, opened)
    assert {kind: one.count for kind, one in report.errors.items()} == {
        "records with missing or broken images": 3, "bad records": 1,
    }  # fmt: skip
    assert sorted(report.bad) == [1, 2, 3, 5] and "record b: image" in report.bad[1] and "does not exist" in report.bad[1]
    assert "cannot be read" in report.bad[2] and "is no regular file" in report.bad[5]
    assert [one.turns[0][1] for one in usable(opened, report)] == ["red", "red", "blue"]
    assert report.facts["records"] == 7 and report.facts["questions"] == 3 and report.facts["images"] == 5
    assert report.facts["height"] == "40 to 41 pixels" and report.facts["records without an image"] == 1
    assert DataReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_doubts_do_not_make_a_record_bad(tmp_path):
    twice = record("0.png")
    source = talk(tmp_path, twice, twice, record("1.png", " "), record("2.png", weight=3))
    report = check_source(source, "conversations")
    assert {kind: one.count for kind, one in report.doubts.items()} == {
        "duplicates": 1, "empty answers": 1, "keys that are not read": 1,
    }  # fmt: skip
    assert not report.errors and "weight (1 records)" in report.table()


def test_damage_behind_the_header_is_seen_when_decoding(tmp_path):
    source = talk(tmp_path, record("cut.jpg"), record("0.png"))
    assert not check_source(source, "conversations").errors
    assert list(check_source(source, "conversations", decode=True).bad) == [0]


def test_stored_images_are_looked_at_by_their_first_bytes(tmp_path):
    members = {"a.jpg": encoded(0), "a.txt": b"one", "b.jpg": b"words", "b.txt": b"two"}
    report = check_source(write_tar(tmp_path / "x.tar", members), "conversations")
    assert list(report.bad) == [1] and "b.jpg cannot be read" in report.bad[1]


def test_records_that_max_length_cuts_are_those_that_training_would_stop_at(vlm, tmp_path):
    long = " ".join(["red"] * 40)
    source = talk(tmp_path, record("0.png"), record("1.png", long), {**record("2.png"), "conversations": [
        {"from": "human", "value": f"<image> {long}"}, {"from": "gpt", "value": "red"}]})  # fmt: skip
    opened = open_conversations(source)
    for limit, bad, cut in ((None, [], 0), (200, [], 0), (40, [2], 1), (10, [0, 1, 2], 0)):
        report, chat = DataReport(source), ChatLabels(vlm.processor, max_length=limit)
        check_lengths(report, opened.rows, chat)
        assert sorted(report.bad) == bad, limit
        assert sum(one.count for one in report.doubts.values()) == cut


def test_easy_vqa_takes_seconds():
    began = time.monotonic()
    report = check_source("easy_vqa", "conversations")
    assert report.facts["records"] == 38575 and report.facts["images"] == 4000 and not report.errors and not report.doubts
    assert time.monotonic() - began < 120  # 3 s on an idle machine


def test_the_kind_of_a_source_follows_from_its_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(record("a.png")))
    (tmp_path / "b.jsonl").write_text('{"image": "a.png", "caption": "red"}\n{"question": "no form"}')
    (tmp_path / "classes/red").mkdir(parents=True)
    (tmp_path / "robot/meta").mkdir(parents=True)
    (tmp_path / "robot/meta/info.json").write_text("{}")
    names = {"a.jsonl": "conversations", "b.jsonl": "images", "classes": "images", "robot": "robot", "x.csv": "images"}
    assert {name: kind_of(str(tmp_path / name)) for name in names} == names
    assert kind_of("easy_vqa") == kind_of("hf:owner/name") == "conversations"


def test_images_with_labels_and_captions(tmp_path):
    for i, name in enumerate(("a", "a", "b")):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        make_image(i).save(tmp_path / "set" / name / f"{i}.png")
    report = check_source(str(tmp_path / "set"), "images")
    assert report.facts["classes"] == 2 and report.facts["samples of a class"] == "1 to 2" and not report.errors
    (tmp_path / "set/a/0.png").write_bytes(b"")
    (tmp_path / "t.csv").write_text("image,caption\nset/b/2.png,red\nset/b/2.png,red\nset/none.png,\n")
    assert "cannot be read" in check_source(str(tmp_path / "set"), "images").bad[0]
    table = check_source(str(tmp_path / "t.csv"), "images")
    assert list(table.bad) == [2] and table.doubts["duplicates"].count == 1
    assert table.doubts["samples without a caption"].examples == ["1 of 3"]


def test_a_kept_look_is_of_the_same_files(tmp_path):
    source = talk(tmp_path, record("0.png"))
    state = state_of(source, {"split": "train"})
    assert state == state_of(source, {"split": "train"}) != state_of(source, {"split": "test"})
    Path(source).write_text(json.dumps([record("0.png"), record("1.png")]))
    assert state != state_of(source, {"split": "train"})


def test_the_command_prints_the_table_and_fails_on_errors(tmp_path, capsys):
    assert main(["check-data", talk(tmp_path, record("0.png"))]) == 0
    assert "nothing is wrong with it" in capsys.readouterr().out
    assert main(["check-data", talk(tmp_path, record("0.png"), record("none.png"))]) == 2
    out, error = capsys.readouterr()
    assert "1 (error): data.json, record 1: image" in out and "the first: data.json, record 1: image" in error
    assert main(["check-data", str(tmp_path / "data.json"), "--max-length", "3"]) == 2
    assert "--max-length and --model go together" in capsys.readouterr().err


@pytest.fixture
def robot(tmp_path):
    write_dataset(tmp_path / "set", some_episodes(), fps=20, codec="h264")
    return tmp_path / "set"


def test_robot_data(robot, capsys):
    report = check_robot("mine", read_dataset(robot))
    assert report.facts["episodes"] == 4 and report.facts["cameras"] == {"top": "64 x 64 (video)", "wrist": "64 x 64 (video)"}
    assert not report.errors and "statistics that the data contradict" not in report.doubts
    assert main(["check-data", str(robot)]) == 0
    assert "range of action" in capsys.readouterr().out


def test_the_share_that_is_clipped_is_that_of_the_round_trip():
    values = np.random.default_rng(0).normal(size=(1000, 2))
    values[:, 1] = np.arange(1000) % 2
    statistics = Statistics.of(values)
    assert clipped_shares(values, "quantiles", statistics).tolist() == [0.02, 0]
    narrow = Statistics(**{**vars(statistics), "q01": [0, 0], "q99": [0.1, 1]})
    normalizer = Normalizer("quantiles", narrow)
    share = clipped_shares(values, "quantiles", narrow)[0]
    assert share == pytest.approx(((values[:, 0] < 0) | (values[:, 0] > 0.1)).mean(), abs=2e-3) and normalizer.dim == 2
    assert not clipped_shares(values, "mean_std", statistics).any() and not clipped_shares(values, "min_max", statistics).any()


def test_a_video_that_is_too_short_is_an_error(robot):
    info = json.loads((robot / "meta/info.json").read_text())
    videos = sorted((robot / "videos").rglob("*.mp4"))
    other = robot.parent / "other"
    write_dataset(other, some_episodes(2), fps=20, codec="h264")
    videos[0].write_bytes(sorted((other / "videos").rglob("*.mp4"))[0].read_bytes())
    report = check_robot("mine", read_dataset(robot))
    assert report.errors["videos that are too short"].count == 1 and info["fps"] == 20
    assert "has 14 frames, and its episodes need 22" in report.table()
