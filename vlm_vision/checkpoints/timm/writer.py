"""Towers in timm's own folder layout: an architecture name, its arguments, weights by timm's names."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlm_vision.checkpoints import keys
from vlm_vision.checkpoints.families.all import FAMILIES
from vlm_vision.checkpoints.timm import layout as timm_layout
from vlm_vision.checkpoints.timm import rotary, write_eva
from vlm_vision.checkpoints.timm.preprocess import to_timm
from vlm_vision.nn.config import ViTConfig
from vlm_vision.preprocess.spec import Preprocess

Json = dict[str, Any]
State = dict[str, Tensor]

_POOLS = {"cls": "token", "mean": "avg", "map": "map", "map_all": "map", "none": "", "cls_dist": "token"}


def describe(family: str, config: ViTConfig) -> Json:
    """timm's config.json without pretrained_cfg: architecture, model_args and the rest.

    Raises:
        ValueError: timm has no architecture for the family.
    """
    arguments: Json = dict(
        img_size=list(config.image_size),
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=_ratio(config),
        num_classes=config.num_classes,
        in_chans=config.channels,
    )
    if config.pool not in _POOLS:
        raise ValueError(f"timm has no pooling {config.pool!r}")
    if config.norm == "rms" and family != "aimv2_vision_model":
        raise ValueError(f"timm's config cannot name an RMSNorm for {family}")
    arguments["global_pool"] = _POOLS[config.pool]
    name = _named(family)(config)
    if write_eva.belongs(config):
        name = write_eva.architecture(config)
        arguments |= write_eva.arguments(config)
    elif family == "siglip2_vision_model":
        del arguments["img_size"]
        arguments |= dict(pos_embed_grid_size=list(config.grid), act_layer=config.mlp)
    elif family == "dinov3_vit":
        arguments |= dict(num_reg_tokens=config.num_registers, init_values=config.layer_scale)
        if config.mlp == "swiglu":
            arguments |= dict(swiglu_align_to=1)
    else:
        arguments |= dict(dynamic_img_size=True, qkv_bias=config.qkv_bias, proj_bias=config.proj_bias)
        if config.pool_norm and config.final_norm:
            raise ValueError(
                "timm has one norm after the blocks, before the pooling or after it, and this encoder has both"
            )
        arguments |= dict(fc_norm=config.pool_norm, final_norm=config.final_norm or config.pool_norm)
        if config.inner_norm != "none":
            arguments |= dict(scale_mlp_norm=True, scale_attn_norm=config.inner_norm == "both")
        if config.mlp != "swiglu":
            arguments["act_layer"] = config.mlp
        if family != "aimv2_vision_model":
            arguments |= dict(
                class_token=config.class_token,
                no_embed_class=config.num_prefix_tokens > 0 and config.position_prefix == 0,
                pre_norm=config.pre_norm,
                init_values=config.layer_scale,
            )
            if "distilled" not in name:
                arguments["reg_tokens"] = config.num_registers
    return dict(architecture=name, num_classes=config.num_classes, num_features=config.embed_dim, model_args=arguments)


def to_timm_state(family: str, config: ViTConfig, state: State) -> tuple[ViTConfig, State]:
    """Our weights as timm arranges them: without mask token, with a warning; with registers, CLS has its position added.

    Raises:
        ValueError: timm has no architecture for the family.
    """
    _named(family)
    if config.mask_token:
        warnings.warn("timm has no mask token: the file leaves it out, and only masked training needs it", stacklevel=5)
    state = {name: value for name, value in state.items() if name != "mask_token"}
    config = replace(config, mask_token=False)
    if family in ("dinov2_with_registers", "tipsv2_vision_model") and config.position_prefix == 1:
        table = state["position.table"]
        state |= {"cls_token": state["cls_token"] + table[:, :1], "position.table": table[:, 1:]}
        config = replace(config, position_prefix=0)
    if family == "clip_vision_model" and config.pool_head == "linear":  # timm keeps CLIP's projection as a classifier
        weight = state.pop("pool_head.weight")
        state |= {"head.weight": weight, "head.bias": torch.zeros_like(weight[:, 0])}
        config = replace(config, pool_head="none", pool_dim=0, num_classes=len(weight))
    return config, state


def tensors(family: str, config: ViTConfig, state: State) -> State:
    """The state dict by timm's names."""
    order = None if config.rope is None else rotary.channels(config.head_dim, "ij")
    return keys.write(timm_layout.key_table(config, _spelling(family, config), order), state)


def preprocess_config(spec: Preprocess, config: ViTConfig) -> Json:
    """timm's pretrained_cfg."""
    return to_timm(spec) | dict(num_classes=config.num_classes, classifier="head", custom_load=False)


def _named(family: str) -> Callable[[ViTConfig], str]:
    named = FAMILIES[family].timm
    if named is None:
        raise ValueError(f"timm has no architecture for {family}: save it with format='hf'")
    return named


def _ratio(config: ViTConfig) -> float:
    """mlp_ratio from which timm, rounding down, gets our hidden channels; it counts both halves of a packed SwiGLU."""
    plain = config.position == "learned" and config.norm == "layer" and not write_eva.belongs(config)
    packed = config.mlp == "swiglu" and plain
    hidden = config.mlp_dim * (2 if packed else 1)
    ratio = hidden / config.embed_dim
    return ratio if int(config.embed_dim * ratio) == hidden else ratio + 1e-6


def _spelling(family: str, config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Names by which `timm_layout` knows timm's own spelling."""
    if write_eva.belongs(config):
        return dict.fromkeys(write_eva.weight_names(config), ())
    naflex, eva = family == "siglip2_vision_model", family == "dinov3_vit"
    names = ["embeds.proj.weight" if naflex else "patch_embed.proj.weight"]
    names.append("dist_token" if config.pool == "cls_dist" else "embeds.reg_token" if naflex else "reg_token")
    names.append("blocks.0.gamma_1" if eva else "blocks.0.ls1.gamma")
    split = config.mlp == "swiglu" and (eva or config.norm == "rms")
    parts = ("fc1_g", "fc1_x", "fc2") if split else ("fc1", "fc2")
    names += [f"blocks.0.mlp.{part}.weight" for part in parts]
    names += ["blocks.0.attn.q_bias"] if eva and config.qkv_bias else []
    return {name: () for name in names if config.layer_scale is not None or "gamma" not in name}
