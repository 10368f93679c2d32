"""State dicts without a configuration, by timm's names."""

import torch
from safetensors.torch import load_file

import vlm_vision as vv
from support.golden import golden_case


def state_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(golden_case(name) / "model.safetensors")


def bare(**fields) -> tuple[vv.VisionTransformer, dict[str, torch.Tensor]]:
    """A small tower with random weights and its state dict by timm's names."""
    shape = dict(image_size=(32, 32), patch_size=16, depth=1, mlp_dim=48, position_prefix=1)
    model = vv.VisionTransformer(vv.ViTConfig(**(shape | fields))).eval()
    names = {"patch_embed.": "patch_embed.proj.", "position.table": "pos_embed"}
    state = {}
    for name, value in model.state_dict().items():
        start = next((ours for ours in names if name.startswith(ours)), "")
        state[names.get(start, "") + name.removeprefix(start)] = value
    return model, state
