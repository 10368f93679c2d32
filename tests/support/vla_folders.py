"""Tiny folders of policies as lerobot 0.6.1 writes them: config.json with the policy's type, the weights of the whole policy.

lerobot saves `policy.state_dict()`, so that the names are those of transformers in memory after the policy's own attribute:
benchmarks/lerobot_towers.py shows it with lerobot itself. The vision-language models are transformers' own, with random weights;
MolmoAct2's is transformers' Molmo2 under the names of lerobot's copy of Ai2's code.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    InternVLConfig,
    InternVLModel,
    Molmo2Config,
    Molmo2ForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

Json = dict[str, Any]

ELSEWHERE = torch.zeros(1024, 1024)
"""4 MB of an action head, which are not the tower's."""

_TEXT: Json = dict(
    hidden_size=20, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=10, intermediate_size=24, vocab_size=64
)  # fmt: skip
_QWEN: Json = dict(depth=4, num_heads=2, patch_size=8, spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=20)


@dataclass
class Folder:
    """A policy's folder, and the model that it is built around."""

    path: Path
    model: nn.Module
    """The whole vision-language model of transformers."""
    tower: dict[str, Tensor]
    """Weights of the tower by their stored names."""
    connector: dict[str, Tensor]


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights that all matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.is_floating_point():
                value += torch.randn(value.shape, generator=generator) * 0.05
    return model.eval()


def qwen3() -> PreTrainedModel:
    vision = _QWEN | dict(
        hidden_size=32, intermediate_size=48, num_position_embeddings=36, deepstack_visual_indexes=[0, 2]
    )
    text = _TEXT | dict(rope_scaling={"rope_type": "default", "mrope_section": [2, 2, 1], "mrope_interleaved": True})
    return randomized(Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=vision, text_config=text)))


def qwen2_5() -> PreTrainedModel:
    vision = _QWEN | dict(hidden_size=32, intermediate_size=48, window_size=32, fullatt_block_indexes=[1, 3])
    text = _TEXT | dict(rope_scaling={"rope_type": "default", "mrope_section": [2, 2, 1]})
    return randomized(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, text_config=text)))


def internvl() -> PreTrainedModel:
    vision: Json = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, image_size=[32, 32], patch_size=[8, 8]
    )  # fmt: skip
    text = {name: value for name, value in _TEXT.items() if name != "head_dim"} | {"model_type": "qwen2"}
    return randomized(InternVLModel(InternVLConfig(vision_config=vision, text_config=text)))


def molmo2() -> PreTrainedModel:
    vision: Json = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=7, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        image_size=[56, 56], patch_size=8,
    )  # fmt: skip
    adapter: Json = dict(
        hidden_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=12, intermediate_size=40, text_hidden_size=20,
        vision_feature_layer=[6, 0],
    )  # fmt: skip
    config = Molmo2Config(vision_config=vision, adapter_config=adapter, text_config=_TEXT)
    return randomized(Molmo2ForConditionalGeneration(config))


def _molmoact2_names(name: str) -> str:
    """Of transformers' Molmo2 -> of lerobot's MolmoAct2."""
    pairs = {
        "model.vision_tower.": "model.model.vision_backbone.image_vit.",
        "model.multi_modal_projector.": "model.model.vision_backbone.",
        ".layers.": ".transformer.resblocks.",
        ".self_attn.q_proj.": ".attention.wq.",
        ".self_attn.k_proj.": ".attention.wk.",
        ".self_attn.v_proj.": ".attention.wv.",
        ".self_attn.o_proj.": ".attention.wo.",
        ".mlp.fc1.": ".feed_forward.w1.",
        ".mlp.fc2.": ".feed_forward.w2.",
        ".layer_norm1.": ".attention_norm.",
        ".layer_norm2.": ".ffn_norm.",
        ".image_projector.gate_proj.": ".image_projector.w1.",
        ".image_projector.down_proj.": ".image_projector.w2.",
        ".image_projector.up_proj.": ".image_projector.w3.",
    }
    pairs |= {f".image_pooling_2d.{x}_proj.": f".image_pooling_2d.w{x}." for x in "qkvo"}
    for theirs, ours in pairs.items():
        name = name.replace(theirs, ours)
    return name


def _molmoact2_config(config: Json) -> Json:
    """Of lerobot's MolmoAct2Config, from that of transformers' Molmo2: blocks count from the end of a tower that has two more."""
    vision, adapter = config["vision_config"], config["adapter_config"]
    same = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "layer_norm_eps",
    )
    side, patch = vision["image_size"][0], vision["patch_size"]
    vit = {name: vision[name] for name in same} | dict(
        model_type="molmoact2", num_hidden_layers=9, image_default_input_size=[side, side], image_patch_size=patch, image_num_pos=49
    )  # fmt: skip
    names = (
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "intermediate_size",
        "text_hidden_size",
    )
    pool = {name: adapter[name] for name in names} | dict(
        model_type="molmoact2", vit_layers=[-3, -9], pooling_attention_mask=True
    )
    return {"model_type": "molmoact2", "vit_config": vit, "adapter_config": pool, "max_action_dim": 32}


_MODELS = {
    "groot": (qwen3, "_groot_model.backbone.model.", "model.visual."),
    "vla_jepa": (qwen3, "model.qwen.model.", "model.visual."),
    "wall_x": (qwen2_5, "model.", "visual."),
    "eo1": (qwen2_5, "model.vlm_backbone.", "model.visual."),
    "evo1": (internvl, "model.embedder.model.", "vision_tower."),
    "molmoact2": (molmo2, "model.", "model.vision_backbone.image_vit."),
}
"""Type -> its model, what stands before that model's names, the tower's names in it."""

_BASE = {
    "groot": "base_model_path", "vla_jepa": "qwen_model_name", "wall_x": "pretrained_name_or_path", "eo1": "vlm_base",
    "evo1": "vlm_model_name", "molmoact2": "checkpoint_path",
}  # fmt: skip


def stored_names(policy: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the vision-language model as the policy stores them."""
    before = _MODELS[policy][1]
    if policy == "molmoact2":
        return {_molmoact2_names(name): value for name, value in state.items()}
    if policy == "wall_x":  # its own class has the tower outside "model."
        state = {name.replace("model.visual.", "visual."): value for name, value in state.items()}
    return {f"{before}{name}": value for name, value in state.items()}


def policy_folder(
    policy: str, folder: Path, *, base: bool = True, pipeline: list[Json] | None = None, **fields: Any
) -> Folder:
    """A policy's folder.

    Args:
        base: whether the vision-language model's own folder lies here, without weights; else the name of a hub id stands there.
        pipeline: steps of policy_preprocessor.json; None for no such file.
        fields: of config.json.
    """
    make, before, inner = _MODELS[policy]
    model, prefix = make(), before + inner
    described = model.config.to_dict()
    described = _molmoact2_config(described) if policy == "molmoact2" else described
    source = folder.parent / f"{folder.name}_base"
    config = {"type": policy, "n_obs_steps": 1, _BASE[policy]: str(source) if base else "someone/tiny"}
    if base and policy == "eo1":
        config |= {"vlm_base": "someone/tiny", "vlm_config": described}
    elif base:
        _write(source / "config.json", described)
    if base and policy == "groot":
        outer = folder.parent / f"{folder.name}_groot"
        _write(outer / "config.json", {"model_type": "Gr00tN1d7", "model_name": str(source), "select_layer": 1})
        config["base_model_path"] = str(outer)
    _write(folder / "config.json", config | fields)
    if pipeline is not None:
        _write(folder / "policy_preprocessor.json", {"name": "policy_preprocessor", "steps": pipeline})
    stored = stored_names(policy, model.state_dict())
    parts = (f"{prefix}merger.", "multi_modal_projector.", ".image_pooling_2d.", ".image_projector.")
    connector = {name: value for name, value in stored.items() if any(part in name for part in parts)}
    others = {"model.action_head.weight": ELSEWHERE}
    if policy == "vla_jepa":
        others["model.video_encoder.encoder.embeddings.patch_embeddings.proj.weight"] = torch.randn(8, 3, 2, 4, 4)
    save_file(
        {name: value.clone().contiguous() for name, value in (stored | others).items()}, folder / "model.safetensors"
    )
    tower = {name: value for name, value in stored.items() if name.startswith(prefix) and name not in connector}
    return Folder(folder, model, tower, connector)


def _write(path: Path, content: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
