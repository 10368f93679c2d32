"""A finished run is not replaced by one with other settings unless asked."""

import json

import pytest

from vlm_vision.train.settings import Training
from vlm_vision.train.start import start_run, write_config


def test_a_finished_run_is_not_overwritten(tmp_path):
    first = Training(out=str(tmp_path), steps=3, weight_decay=0.01, tracker="none")
    start_run(first)
    write_config(first)
    other = Training(out=str(tmp_path), steps=3, weight_decay=0.02, tracker="none")
    start_run(other)  # it never finished: its checkpoints say whether they fit
    (tmp_path / "metrics.json").write_text(json.dumps({}))
    start_run(first)
    start_run(Training(out=str(tmp_path), steps=3, weight_decay=0.01, tracker="none", log_every=7))  # the same result
    with pytest.raises(
        ValueError, match="belongs to another run: weight_decay was 0.01 and is 0.02; it is finished, so choose another"
    ):
        start_run(other)
    start_run(Training(out=str(tmp_path), steps=3, weight_decay=0.02, tracker="none", overwrite=True))
    assert not (tmp_path / "metrics.json").exists()
