"""Public files under the names that their authors gave them, before transformers had the model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.census.build import build
from support.census.cases import CASES

import vlm_vision as vv


def saved(name: str, folder) -> dict:
    """A case of the census in a folder, and its config.json."""
    case = CASES[name]
    build(case.model_type, case.changes, case.model).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@torch.inference_mode()
def test_molmo2_counts_blocks_that_its_weights_lack(tmp_path):
    config = saved("molmo2", tmp_path)
    x = torch.randn(1, 3, 64, 72)
    expected = vv.load(tmp_path)(x).patch_tokens
    vision = config.pop("vision_config")
    vision |= {"model_type": "molmo2", "image_default_input_size": vision.pop("image_size")}
    vision |= {"image_patch_size": vision.pop("patch_size"), "image_num_pos": vision.pop("num_position_embeddings")}
    config["vit_config"] = vision | {"num_hidden_layers": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(vv.load(tmp_path)(x).patch_tokens, expected)


@torch.inference_mode()
def test_video_llava_has_two_towers_and_says_so(tmp_path):
    saved("video_llava", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file(
        {name.replace("_tower.", "_tower.vision_model."): value for name, value in stored.items()},
        tmp_path / "model.safetensors",
    )
    image, video = (vv.load(tmp_path, part=part) for part in ("image_tower", "video_tower.vision_model"))
    x = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(image(x).patch_tokens, video(x).patch_tokens)
    with pytest.raises(ValueError, match='image_tower.*part="..."'):
        vv.load(tmp_path)
