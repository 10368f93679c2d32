"""Towers of timm beside the golden cases: tokens and logits of unmodified timm, there and back, and what is refused."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.golden import TOLERANCE, error, with_prefix

import vlm_vision as vv
from vlm_vision.checkpoints.timm import writer
from vlm_vision.checkpoints.timm.refused import reason
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope

DATA = Path(__file__).resolve().parents[1] / "data" / "timm_towers"
DESCRIBED = json.loads((DATA / "towers.json").read_text())


def _maker():
    spec = importlib.util.spec_from_file_location("timm_towers_make", DATA / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _maker()


def written(folder: Path, name: str, **arguments) -> Path:
    """The folder that timm saves for a tower."""
    folder.mkdir(exist_ok=True)
    config = DESCRIBED[name]["config"]
    config = config | {"model_args": config["model_args"] | arguments}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {key: torch.from_numpy(value) for key, value in MAKER.weights(DESCRIBED[name]["shapes"]).items()}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", DESCRIBED)
@torch.inference_mode()
def test_a_tower_is_exact_there_and_back(tmp_path, name):
    outputs = np.load(DATA / "outputs.npz")
    encoder = vv.load(written(tmp_path / "timm", name), reference="timm")
    for i, size in enumerate(MAKER.SIZES):
        out = encoder(torch.from_numpy(MAKER.pixels(size)))
        assert error(with_prefix(out), torch.from_numpy(outputs[f"{name}.tokens{i}"])) < TOLERANCE
        assert error(out.logits, torch.from_numpy(outputs[f"{name}.logits{i}"])) < TOLERANCE
    encoder.save_pretrained(tmp_path / "again", format="timm")
    again = vv.load(tmp_path / "again")
    x = torch.from_numpy(MAKER.pixels(MAKER.SIZES[1]))
    assert again.config == encoder.config
    assert error(again(x).patch_tokens, encoder(x).patch_tokens) < TOLERANCE


@torch.inference_mode()
def test_images_of_several_sizes_in_one_sequence(tmp_path):
    encoder = vv.load(written(tmp_path / "timm", "vit_pe_core_base_patch16_224"))
    images = [torch.from_numpy(MAKER.pixels(size))[0] for size in MAKER.SIZES]
    for image, out in zip(images, encoder.model.packed(images), strict=True):
        alone = encoder(image[None])
        assert error(out.patch_tokens, alone.patch_tokens) < TOLERANCE
        assert error(out.pooled, alone.pooled) < TOLERANCE


def test_arguments_that_change_the_rotary_positions_are_read(tmp_path):
    name = "vit_pe_lang_large_patch14_448"
    changed = dict(rope_temperature=50.0, ref_feat_shape=[8, 8], rope_grid_offset=2.0)
    rope = vv.load(written(tmp_path / "timm", name, **changed)).config.rope
    assert rope == Rope(base=50.0, coordinates="share", span=8, first=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(ref_feat_shape=[8, 4]), "ref_feat_shape .8, 4.*: expected a square grid and a whole number"),
        (dict(rope_grid_offset=0.5), "rope_grid_offset 0.5: expected a square grid and a whole number"),
        (dict(rope_grid_indexing="yx"), "rope_grid_indexing 'yx': expected 'ij' or 'xy'"),
        (dict(rope_type="mixed"), "rope_type='mixed', which is not supported"),
        (dict(use_abs_pos_emb=False), "a position table True where False is expected"),
    ],
)
def test_arguments_that_are_not_supported_are_named(tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        vv.load(written(tmp_path / "timm", "vit_pe_lang_large_patch14_448", **arguments))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vit_base_patch16_rpn_224", "norms follow attention and MLP"),
        ("eva02_enormous_patch14_clip_224", "norms follow attention and MLP"),
        ("vit_small_patch16_rope_mixed_224", "frequencies that are learned"),
        ("beitv2_base_patch16_224", "relative positions"),
        ("vit_1b_patch16_sapiens2", "number of key heads differs"),
        ("naflexvit_base_patch16_gap", "aspect ratio"),
        ("qwen3_vit_88m", "folder of transformers"),
        ("resnet50", "no plain vision transformer of timm"),
    ],
)
def test_an_architecture_that_is_no_plain_transformer_says_why(tmp_path, name, says):
    folder = written(tmp_path / "timm", "eva02_tiny_patch14_224")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": name}))
    with pytest.raises(ValueError, match=says):
        vv.load(folder)
    assert reason("vit_base_patch16_224") is None


def test_a_norm_before_and_after_pooling_is_not_saved_for_timm():
    small = dict(image_size=(16, 16), patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_dim=32)
    with pytest.raises(ValueError, match="timm has one norm after the blocks"):
        writer.describe("vit", ViTConfig(**small, pool="mean", pool_norm=True))
