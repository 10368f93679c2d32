"""Fields of config.json that one family alone has: read, written back, and refused where they do not fit."""

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch
from support.census.build import build
from support.census.cases import CASES
from transformers import RadioConfig, RadioModel

import vlm_vision as vv
from vlm_vision.checkpoints.families.all import FAMILIES
from vlm_vision.checkpoints.towers import TowerWeights


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


def test_hunyuan_writes_the_positions_that_it_has():
    family = FAMILIES["hunyuan_vl_vision"]
    config = family.read_config(family.defaults, frozenset())
    assert family.write_config(config)["interpolate_mode"] == "bilinear"
    with pytest.raises(ValueError, match="cannot express position_resize 'zoom' here: choose one of bilinear, bicubic"):
        family.write_config(dataclasses.replace(config, position_resize="zoom"))


def test_minicpm_ocr_runs_without_its_merger_where_its_file_is_silent(tmp_path):
    folder = whole("minicpm_ocr", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["downsample_mode"]
    (folder / "config.json").write_text(json.dumps(config))
    encoder = vv.load(folder)
    assert encoder.config.merge_after == -1
    assert encoder.preprocess.patch_size == 2 * encoder.config.patch_size


def _radio(folder: Path, chosen: list[int], **stated) -> Path:
    """A RADIO whose buffer holds `chosen`."""
    sizes = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, patch_size=8, image_size=64, max_img_size=96
    )
    RadioModel(RadioConfig(**sizes, num_cls_tokens=3, num_registers=2, summary_idxs=chosen)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["summary_idxs"]
    (folder / "config.json").write_text(json.dumps(config | stated))
    return folder


@pytest.mark.parametrize(("chosen", "stated"), [([2, 0], {}), ([], {"summary_idxs": []})])
def test_radio_pools_the_tokens_that_its_buffer_names(chosen, stated, tmp_path):
    encoder = vv.load(_radio(tmp_path / "silent", chosen, **stated))
    assert encoder.config.pool_tokens == tuple(chosen)
    assert (encoder(torch.randn(1, 3, 64, 64)).pooled is None) == (not chosen)
    encoder.save_pretrained(tmp_path / "written", format="hf")
    assert vv.load(tmp_path / "written").config == encoder.config
    assert json.loads((tmp_path / "written/config.json").read_text())["summary_idxs"] == chosen


def test_radio_refuses_a_buffer_that_its_config_contradicts(tmp_path):
    with pytest.raises(ValueError, match=r"has summary_idxs \[0, 1\], but its weights hold \[2, 0\]: remove the wrong"):
        vv.load(_radio(tmp_path, [2, 0], summary_idxs=[0, 1]))


def test_a_weight_outside_the_tower_under_a_name_inside_is_an_error():
    class Weights:
        shapes = {"vision_model.embeddings.bias": (2,), "embeddings.bias": (2,)}

        def get(self, name: str, *, keep: bool = True) -> torch.Tensor:
            return torch.zeros(self.shapes[name])

    with pytest.raises(
        ValueError, match="embeddings.bias and vision_model.embeddings.bias are one weight under two names"
    ):
        TowerWeights(Weights(), "vision_model.", extra=["embeddings.bias"])
    alone = TowerWeights(Weights(), None, extra=["embeddings.bias", "embeddings.weight"])
    assert alone.stored == {"embeddings.bias": "embeddings.bias"}
