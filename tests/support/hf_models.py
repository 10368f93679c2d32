"""Tiny models that transformers makes, and the golden OpenVLA in another layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.golden import golden_case

VISION = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, patch_size=4, image_size=16
)


TEXT = dict(
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    intermediate_size=32,
    vocab_size=40,
)


def make(model_type: str, **fields):
    """A model of transformers with random weights, none of them zero or one."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForImageTextToText

    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers is older than {model_type}")
    config = AutoConfig.for_model(model_type, **fields)
    whole = "text_config" in fields
    model = (AutoModelForImageTextToText if whole else AutoModel).from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def prismatic_own_file(folder: Path) -> Path:
    """The golden OpenVLA as Prismatic's own code saves a run."""
    stored = load_file(golden_case("openvla_fused_bf16") / "model.safetensors")
    names = {"fused_featurizer": "siglip_featurizer", "featurizer": "dino_featurizer"}
    model: dict = {"vision_backbone": {}, "projector": {}}
    for name, value in stored.items():
        part, _, rest = name.partition(".")
        if part == "vision_backbone":
            tower, _, rest = rest.partition(".")
            model[part][f"{names[tower]}.{rest.replace('scale_factor', 'gamma')}"] = value
        elif part == "projector":
            index = {"fc1": 0, "fc2": 2, "fc3": 4}[rest.split(".")[0]]
            model[part][f"projector.{index}.{rest.split('.')[1]}"] = value
    (folder / "checkpoints").mkdir()
    torch.save({"model": model}, folder / "checkpoints" / "latest-checkpoint.pt")
    config = json.loads((golden_case("openvla_fused_bf16") / "config.json").read_text())
    kept = {
        name: config[name] for name in ("vision_backbone_id", "image_resize_strategy", "timm_model_args", "image_sizes")
    }
    (folder / "config.json").write_text(json.dumps({"model": kept}))
    return folder
