"""The check before training: kept next to the run, reused, and what it stops."""

import json
import logging

import pytest
from accelerate import Accelerator
from support.models import make_image

from vlm_vision.data.check.report import DataReport
from vlm_vision.data.conversations.labels import ChatLabels
from vlm_vision.train.check_data import FILE, DataCheck, allow, checked_conversations, checked_lengths
from vlm_vision.train.settings import ConversationData

ASK = [{"from": "human", "value": "<image>\nwhat color ?"}, {"from": "gpt", "value": "red"}]


@pytest.fixture
def source(tmp_path):
    """Ten records, of which one has no image file."""
    for i in range(9):
        make_image(i).save(tmp_path / f"{i}.png")
    records = [{"id": i, "image": f"{i}.png", "conversations": ASK} for i in range(10)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return str(tmp_path / "data.json")


def test_a_bad_record_stops_the_run_unless_a_share_may_be_left_out(source, tmp_path, caplog):
    with pytest.raises(
        ValueError, match=r"record 9: image .*9.png does not exist.*data.leave_out to a share from 0.1 on"
    ):
        checked_conversations(Accelerator(), str(tmp_path), ConversationData(train=source))
    with caplog.at_level(logging.WARNING):
        data = ConversationData(train=source, test=source, leave_out=0.1)
        train, test = checked_conversations(Accelerator(), str(tmp_path), data)
    assert [one.name for one in train] == [f"data.json, record {i}" for i in range(9)] == [one.name for one in test]
    assert "1 of 10 records are left out" in caplog.text
    assert set(json.loads((tmp_path / FILE).read_text())) == {"train", "test"}
    with pytest.raises(ValueError, match="leave_out is 2: expected a share"):
        ConversationData(train=source, leave_out=2)


def test_a_report_is_kept_until_the_files_change(source, tmp_path, capsys):
    made = []

    def make() -> DataReport:
        made.append(1)
        return DataReport(source, {"records": len(made)})

    look = DataCheck(Accelerator(), tmp_path)
    assert look("train", source, {}, make) == look("train", source, {}, make) and made == [1]
    assert capsys.readouterr().out.count("records") == 2
    look("train", source, {"split": "other"}, make)
    (tmp_path / "data.json").write_text("[]")
    look("train", source, {"split": "other"}, make)
    (tmp_path / FILE).write_text('{"train": {"state": 3}}')
    look("train", source, {"split": "other"}, make)
    assert made == [1] * 4


def test_records_that_do_not_fit_are_found_before_training(vlm, source, tmp_path):
    train, _ = checked_conversations(Accelerator(), str(tmp_path), ConversationData(train=source, leave_out=0.1))
    chat = ChatLabels(vlm.processor, max_length=10)
    with pytest.raises(ValueError, match="9 records that do not fit, the first: data.json, record 0 has"):
        checked_lengths(Accelerator(), "data.json", train, chat, 0.5)
    assert checked_lengths(Accelerator(), "x", train, ChatLabels(vlm.processor, max_length=60), 0) is train


def test_errors_of_the_whole_source_are_not_left_out():
    report = DataReport("x")
    report.error("videos that are too short", "a.mp4 has 3 frames")
    with pytest.raises(
        ValueError, match="x: 1 videos that are too short, the first: a.mp4 has 3 frames; repair the data$"
    ):
        allow(report, 10, 1.0, "data.leave_out")
