"""Fields of config.json that one family alone has: read, written back, and refused where they do not fit."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from support.census.build import build
from support.census.cases import CASES

import vlm_vision as vv


def whole(name: str, folder: Path, **changes) -> Path:
    """The folder of a row of the census with changed fields of its vision_config."""
    case = CASES[name]
    vision = case.changes.get("vision_config", {}) | changes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(case.model_type, case.changes | {"vision_config": vision}, case.model).save_pretrained(folder)
    return folder


def test_kimi_has_positions_for_so_many_frames(tmp_path):
    encoder = vv.load(whole("kimi_k25", tmp_path / "whole", pos_emb_time=3))
    assert encoder.config.time_position == 3
    video = torch.randn(1, 4, 3, 32, 32)
    assert encoder(video[:, :3]).frames == 3
    with pytest.raises(ValueError, match="a video of 4 frames is longer than the 3 frames .* encode it in parts"):
        encoder(video)
    encoder.save_pretrained(tmp_path / "written", format="hf")
    assert json.loads((tmp_path / "written/config.json").read_text())["pos_emb_time"] == 3


def test_kimi_needs_a_frame(tmp_path):
    folder = whole("kimi_k25", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["pos_emb_time"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pos_emb_time is 0: it must be a whole number of at least 1"):
        vv.load(folder)
