"""The rows of `benchmarks.gpu`, as far as a CPU goes."""

import re

import pytest
import torch

from benchmarks import gpu


def test_every_row_has_a_name_of_its_own_and_says_that_it_is_not_measured(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = [row.name for row in gpu.ROWS]
    assert len(set(names)) == len(names)
    gpu.main([])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == ["| row | result |", "|---|---|", *(f"| {name} | not yet measured |" for name in names)]


def test_rows_that_would_begin_too_late_are_left_out(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rows = (gpu.Row("first", lambda: "3 images/s"), gpu.Row("second", lambda: "never"))
    monkeypatch.setattr(gpu, "MINUTES", 0)
    gpu.print_table(rows)
    assert capsys.readouterr().out.count("left out: the 0 minutes are over") == 2
    assert rows[0].result(1.0) == "3 images/s (0 s)"


def test_a_row_is_chosen_by_its_name(capsys) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--rows", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_token_extraction_states_both_rates_and_the_idle_share() -> None:
    text = gpu.token_extraction("dinov2_small", images=2, batch=1, device="cpu")
    assert re.fullmatch(r"dinov2_small at 224 px: \d+ images/s, the forward alone \d+; the GPU is idle -?\d+%", text)
