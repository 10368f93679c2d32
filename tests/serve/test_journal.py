"""Lines of the server's log, and what its refusals name."""

import logging

import numpy as np
import pytest

from vlm_vision.robot.observation import PolicySpec
from vlm_vision.serve.journal import Journal
from vlm_vision.serve.key_map import KeyMap


def test_lines_are_bounded_and_those_left_out_are_counted(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vlm_vision.serve.journal.time.monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO):
        journal = Journal(rate=2)
        for i in range(5):
            journal.write(f"line {i}")
        now[0] = 1.0
        journal.write("a\nb")
    assert caplog.messages == ["line 0", "line 1", "a b (3 more lines before it were left out)"]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((1, 24, 24, 3), np.uint8), r"shape \(1, 24, 24, 3\), whose first axis is a batch: send one image"),
        ([[[0, 0, 0]]], 'is of type list: expected a uint8 array .* written in JSON as {"__numpy__": base64'),
        ("aGFsbG8=", "is of type str: expected a uint8 array"),
    ],
)
def test_an_image_of_another_form_is_told_the_form(image, says):
    keys = KeyMap.of(PolicySpec(("front",), 2), {})
    with pytest.raises(ValueError, match=says):
        keys.observation({"front": image, "prompt": "go"})
