"""Towers and mergers of Qwen's kind in files as published, and what is refused of them in one sentence."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.census.build import build
from support.census.cases import CASES
from support.census.inputs import flat_patches

import vlm_vision as vv


def saved(name: str, folder, changes: dict | None = None):
    case = CASES[name]
    whole = build(case.model_type, changes or case.changes, case.model)
    whole.save_pretrained(folder)
    return whole


def renamed(folder, *pairs: tuple[str, str], more: dict | None = None) -> None:
    """The weights under other names."""
    weights = load_file(folder / "model.safetensors")
    for pattern, name in pairs:
        weights = {re.sub(pattern, name, stored): weight for stored, weight in weights.items()}
    save_file(weights | (more or {}), folder / "model.safetensors", metadata={"format": "pt"})


def vision(folder, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config))


PUBLISHED = {
    "dots3_note": [
        (r"^vision_tower\.", "vision_encoder."),
        (r"encoder\.norm\.", "encoder.post_trunk_norm."),
        (r"encoder\.merger\.", "encoder.adapter."),
        (r"(blocks\.\d+)\.norm([12])\.", r"\1.norm_\2."),
        (r"(encoder\.blocks\.\d+\.mlp)\.gate_proj", r"\1.fc1"),
        (r"(encoder\.blocks\.\d+\.mlp)\.down_proj", r"\1.fc2"),
        (r"(encoder\.blocks\.\d+\.mlp)\.up_proj", r"\1.fc3"),
    ],
    "ernie4_5_vl_moe": [
        (r"^vision_(tower|model)\.", "vision_model."),
        (r"(spatial|temporal)_linear\.fc1", r"\1_linear.0"),
        (r"(spatial|temporal)_linear\.fc2", r"\1_linear.2"),
        (r"(spatial|temporal)_linear\.ln", r"\1_linear.3"),
    ],
    "paddleocr_vl": [(r"^projector\.", "mlp_AR.")],
    "hyperclovax_vision_v2": [
        (r"^(vision_model|language_model)\.", r"model.\1."),
        ("^projector", "model.vision_projector"),
    ],
    "cosmos3_omni": [(r"^(visual|language_model)\.", "")],
    "qwen3_omni_moe_thinker": [(r"^", "thinker.")],
}


@pytest.mark.parametrize("name", PUBLISHED)
@torch.inference_mode()
def test_names_of_public_files_are_read(name, tmp_path):
    saved(name, tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    before, projector = vv.load(tmp_path), vv.load_projector(tmp_path)
    unused = {}
    if name == "paddleocr_vl":
        unused = {f"visual.vision_model.{part}": torch.ones(2, 2) for part in
                  ("head.probe", "head.mlp.fc1.weight", "embeddings.packing_position_embedding.weight")}  # fmt: skip
    renamed(tmp_path, *PUBLISHED[name], more=unused)
    after, again = vv.load(tmp_path), vv.load_projector(tmp_path)
    tokens, grid = before(pixels).patch_tokens, before(pixels).grid
    assert torch.equal(after(pixels).patch_tokens, tokens)
    assert torch.equal(again(tokens, grid), projector(tokens, grid))


@torch.inference_mode()
def test_patches_are_merged_as_the_image_processor_says(tmp_path):
    whole = saved("video_llama_3", tmp_path)
    encoder, pixels = vv.load(tmp_path), torch.randn(2, 3, 48, 96)
    out = encoder(pixels)
    for merge in (1, 2, 3):
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "VideoLlama3ImageProcessor", "merge_size": merge, "patch_size": 8})
        )
        projector = vv.load_projector(tmp_path)
        rows, sizes = flat_patches(pixels, 8, merge, 1)
        merged = torch.full((2,), merge)
        expected = whole.get_image_features(rows, image_grid_thw=sizes, image_merge_sizes=merged).pooler_output
        ours = projector(out.patch_tokens, out.grid)
        assert ours.shape[1] == projector.num_tokens(out.grid)
        torch.testing.assert_close(ours, torch.stack(expected), rtol=0, atol=1e-5)


REFUSED = {
    "a window below a square": ("qwen2_5_vl", dict(window_size=15), "window_size is 15: expected at least a square of 2 x 2"),
    "another rope_type": ("qwen2_vl", dict(rope_parameters={"rope_type": "linear"}), "rope_type is 'linear'"),
    "another head_dim": ("qwen3_vl", dict(head_dim=12), "head_dim is 12 with hidden_size 64 and 4 heads"),
    "no square table": ("qwen3_vl", dict(num_position_embeddings=35), "num_position_embeddings is 35"),
    "a gate that is not known": ("glm4v", dict(hidden_act="relu"), "hidden_act is 'relu' in a gated MLP: expected silu"),
    "no activation": ("ernie4_5_vl_moe", dict(hidden_act="mish"), "hidden_act 'mish', expected one of gelu"),
    "two sides": ("glm4v", dict(image_size=[48, 64]), r"image_size is \[48, 64\]: expected the side of a square"),
    "experts": ("dots3_note", dict(mlp_layer_types=["dense", "dense", "sparse"]), "experts from block 2 on"),
    "experts under the old name": ("dots3_note", dict(pyramid_num_routed=[-1, 4, 4]), "experts from block 1 on"),
    "experts where it is silent": ("dots3_note", dict(mlp_layer_types=None, num_hidden_layers=26), "experts from block 25"),
    "unequal blocks": ("dots3_note", dict(per_layer_config={"1": {"intermediate_size": 32}}), "block 1 another intermediate"),
    "convolutions": ("lfm3_vl", {}, "whose vision part is 'lfm3_vl_vision': some of its blocks are gated convolutions"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_tower_here_can_be_is_refused(what, tmp_path):
    name, fields, says = REFUSED[what]
    if name in CASES:
        saved(name, tmp_path)
    else:
        build(name, {}).save_pretrained(tmp_path)
    vision(tmp_path, **fields)
    with pytest.raises(ValueError, match=says):
        vv.load(tmp_path)
