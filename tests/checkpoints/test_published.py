"""Presets of towers that come inside vision-language models: sizes as published, and as transformers' own classes have them."""

import importlib

import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vlm_vision import presets
from vlm_vision.checkpoints.families.all import FAMILIES
from vlm_vision.checkpoints.families.vlm.published import PUBLISHED, Published

ROWS = {tower.name: tower for tower in PUBLISHED}


def theirs(tower: Published) -> nn.Module:
    """transformers' tower of the same fields, without memory for its weights."""
    name = FAMILIES[tower.family].architecture
    cls = getattr(transformers, name, None)
    if cls is None:
        module = CONFIG_MAPPING[tower.family].__module__.replace("configuration_", "modeling_")
        cls = getattr(importlib.import_module(module), name)
    with torch.device("meta"):
        return cls(cls.config_class(**tower.fields))


@pytest.mark.parametrize("name", ROWS)
def test_a_preset_has_the_weights_of_the_class_in_transformers(name):
    family = FAMILIES[ROWS[name].family]
    with torch.device("meta"):
        ours = presets.create(name).state_dict()
    stored = {stored.removeprefix(family.prefix): w for stored, w in theirs(ROWS[name]).state_dict().items()}
    table = family.keys(presets.config(name), family.style_of(stored))
    assert {mine for row in table for mine in row.ours} == ours.keys()
    for row in table:
        assert sum(ours[mine].numel() for mine in row.ours) == sum(stored[their].numel() for their in row.theirs), row
    used = {their for row in table for their in row.theirs}
    unused = {their for their in stored.keys() - used if not their.startswith(family.connector or ("\n",))}
    assert not {their for their in unused if "layer_scale" not in their}  # C-RADIO's public files have none


@pytest.mark.parametrize(
    ("name", "millions"),
    [  # model cards of InternViT; Gemma 3 (arXiv:2503.19786); Pixtral (arXiv:2410.07073); MoonViT (arXiv:2504.07491)
        ("internvl3_300m", 304.01),
        ("internvl3_6b", 5540),
        ("gemma3_4b", 417),
        ("pixtral_12b", 400),
        ("kimi_k25", 417),
    ],
)
def test_a_preset_has_the_published_size(name, millions):
    with torch.device("meta"):
        weights = presets.create(name).parameters()
    assert sum(weight.numel() for weight in weights) / 1e6 == pytest.approx(millions, rel=0.01)


def test_presets_name_their_public_checkpoint():
    assert presets.public_id("qwen3_vl_4b") == "Qwen/Qwen3-VL-4B-Instruct"
    assert presets.public_id("dinov2_large") is None
    assert presets.checkpoint_family("qwen3_vl_4b") == "qwen3_vl_vision" and presets.family("qwen3_vl_4b") == "qwen3_vl"
    assert len({tower.name for tower in PUBLISHED}) == len(PUBLISHED)
    with pytest.raises(ValueError, match="no preset is called 'qwen3_vl_5b': did you mean qwen3_vl_"):
        presets.public_id("qwen3_vl_5b")
