"""The `blocks.i.attn.qkv` layout of timm, shared with small differences by the code of DeiT, MAE, DINO, DINOv2 and DINOv3.

Everything that follows from shapes is read from the shapes; the format states the rest (heads, activation, epsilon).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_vision.checkpoints.families.rotary import reordered
from vlm_vision.checkpoints.keys import PATCH_VECTOR, ZEROS, Key, TensorLayout, key, layer, table_to_grid
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.position import Grid

Shapes = Mapping[str, Sequence[int]]

LANDMARKS = ("patch_embed.proj.weight", "embeds.proj.weight")
"""Patch embedding: a convolution, or NaFlex's linear map of patch vectors."""

_REGISTERS = ("reg_token", "register_tokens", "storage_tokens")
_SCALES = (
    ("ls1.gamma", "ls2.gamma"),
    ("ls1.scale_factor", "ls2.scale_factor"),  # OpenVLA, because transformers used to rename gamma
    ("gamma_1", "gamma_2"),  # DeiT-III's own code, timm's Eva
)
_MLPS = (
    (("w12",), "w3"),  # DINOv2
    (("w1", "w2"), "w3"),  # DINOv3
    (("fc1_g", "fc1_x"), "fc2"),  # timm's SwiGLU
    (("fc1",), "fc2"),  # plain, or timm's GluMlp with both halves in one
)

_CARRY_NOTHING = re.compile(r"blocks\.\d+\.attn\.qkv\.bias_mask|rope_embed\.periods|local_cls_norm\..*")


def is_ignored_weight(name: str) -> bool:
    """Documented exceptions to "every stored weight is used": constants, and the norm of local crops in training."""
    return _CARRY_NOTHING.fullmatch(name) is not None


IN_CHUNKS = ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),)
"""DINOv2's training code nests blocks in chunks, `blocks.0.7.norm1`; the inner number counts through."""


def prefixes(names: Sequence[str]) -> list[str]:
    """Prefix of the names of each tower of this layout."""
    return [name.removesuffix(mark) for name in names for mark in LANDMARKS if name.endswith(mark)]


def fields(shapes: Shapes, *, image_size: Grid | None = None) -> dict[str, Any]:
    """The fields of `ViTConfig` that follow from shapes.

    Args:
        shapes: of the tower's weights.
        image_size: native (height, width) in pixels where known; without it the position table must be square.

    Raises:
        ValueError: weights that are not a vision transformer of this layout.
    """
    try:
        return _fields(shapes, image_size)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith("the "):
            raise
        raise ValueError(f"the weights are not a vision transformer of timm's layout (no {error})") from None


def _fields(shapes: Shapes, image_size: Grid | None) -> dict[str, Any]:
    patch = shapes.get("patch_embed.proj.weight") or shapes["embeds.proj.weight"]
    dim = patch[0]
    channels, side = (patch[1], patch[2]) if len(patch) == 4 else (3, math.isqrt(patch[1] // 3))
    if channels * side * side != math.prod(patch[1:]):
        raise ValueError(f"the patch embedding has shape {list(patch)}: expected square patches")
    stem = "embeds." if "embeds.proj.weight" in shapes else ""
    first, second = _mlp(shapes)
    rows = sum(shapes[f"blocks.0.mlp.{part}.weight"][0] for part in first)
    mlp_dim = shapes[f"blocks.0.mlp.{second}.weight"][1]
    registers = next((shapes[stem + name][1] for name in _REGISTERS if stem + name in shapes), 0)
    class_token = f"{stem}cls_token" in shapes
    registers += "dist_token" in shapes
    heads = "head.weight" in shapes
    found: dict[str, Any] = dict(
        patch_size=side,
        channels=channels,
        embed_dim=dim,
        depth=1 + max(int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name)),
        mlp_dim=mlp_dim,
        class_token=class_token,
        num_registers=registers,
        mask_token="mask_token" in shapes,
        patch_bias=f"{stem or 'patch_embed.'}proj.bias" in shapes,
        patch_norm="patch_embed.norm.weight" in shapes,
        pre_norm="norm_pre.weight" in shapes,
        qkv_bias=any(f"blocks.0.attn.{part}" in shapes for part in ("qkv.bias", "q_bias", "q_proj.bias")),
        key_bias=not any(
            f"blocks.0.attn.{query}" in shapes and f"blocks.0.attn.{its_key}" not in shapes
            for query, its_key in (("q_bias", "k_bias"), ("q_proj.bias", "k_proj.bias"))
        ),
        proj_bias="blocks.0.attn.proj.bias" in shapes,
        mlp_bias=f"blocks.0.mlp.{second}.bias" in shapes,
        norm="layer" if "blocks.0.norm1.bias" in shapes else "rms",
        layer_scale=1.0 if _scale(shapes) else None,
        final_norm="norm.weight" in shapes,
        pool_norm="fc_norm.weight" in shapes,
        inner_norm=_inner_norm(shapes),
        num_classes=shapes["head.weight"][0] if heads else 0,
        film_dim=shapes["blocks.0.scale.weight"][1] if "blocks.0.scale.weight" in shapes else 0,
    )
    if rows == 2 * mlp_dim:
        found["mlp"] = "swiglu"
    pool_dim = shapes.get("attn_pool.mlp.fc1.weight", (mlp_dim,))[0]
    if pool_dim != mlp_dim:
        found["pool_mlp_dim"] = pool_dim
    if "head_dist.weight" in shapes:
        found["class_input"] = "distilled"
    return found | _position(shapes, found, image_size)


def _position(shapes: Shapes, found: dict[str, Any], image_size: Grid | None) -> dict[str, Any]:
    patch = found["patch_size"]
    if "embeds.pos_embed" in shapes:
        _, rows, columns, _ = shapes["embeds.pos_embed"]
        return dict(image_size=(rows * patch, columns * patch))
    if "pos_embed" not in shapes:
        return dict(image_size=image_size or (16 * patch, 16 * patch), position="rope2d")
    count = shapes["pos_embed"][1]
    tokens = sorted({0, int(found["class_token"]), int(found["class_token"]) + found["num_registers"]})
    if image_size is not None:
        own = count - (image_size[0] // patch) * (image_size[1] // patch)
        if own in tokens:
            return dict(image_size=image_size, position_prefix=own)
    for own in tokens:
        side = math.isqrt(max(0, count - own))
        if side > 0 and side * side == count - own:
            return dict(image_size=(side * patch, side * patch), position_prefix=own)
    raise ValueError(
        f"the position table has {count} rows, expected a square grid and {' or '.join(map(str, tokens))} prefix tokens: "
        "for another grid pass image_size=(height, width) in pixels"
    )


def _inner_norm(shapes: Shapes) -> str:
    if "blocks.0.mlp.norm.weight" not in shapes:
        return "none"
    return "both" if "blocks.0.attn.norm.weight" in shapes else "mlp"


def _scale(shapes: Shapes) -> tuple[str, str] | None:
    return next((pair for pair in _SCALES if f"blocks.0.{pair[0]}" in shapes), None)


def _mlp(shapes: Shapes) -> tuple[tuple[str, ...], str]:
    for first, second in _MLPS:
        if all(f"blocks.0.mlp.{part}.weight" in shapes for part in (*first, second)):
            return first, second
    raise KeyError("blocks.0.mlp.fc1.weight")


def _without_key(bias: Tensor, shape: Sequence[int]) -> Tensor:
    query, masked, value = bias.chunk(3)
    return torch.cat([query, torch.zeros_like(masked), value])


_KEY_MASKED = TensorLayout(write=lambda bias: bias, read=_without_key)
"""A qkv bias whose key part the code multiplies by zero, whatever is stored there."""


def key_table(config: ViTConfig, shapes: Shapes, order: list[int] | None = None) -> list[Key]:
    """The key table of a tower of this layout, in the spelling that `shapes` is in.

    Args:
        order: for each of our channels of a query or key head, the checkpoint's; None for the same order.
    """
    stem = "embeds." if "embeds.proj.weight" in shapes else ""
    proj = f"{stem or 'patch_embed.'}proj"
    keys = [key("patch_embed.weight", f"{proj}.weight", layout=PATCH_VECTOR if stem else None)]
    if config.patch_bias:
        keys.append(key("patch_embed.bias", f"{proj}.bias"))
    if config.position == "learned":
        keys.append(key("position.table", f"{stem}pos_embed", layout=table_to_grid(1, *config.grid) if stem else None))
    if config.class_token:
        keys.append(key("cls_token", f"{stem}cls_token"))
    if config.num_registers:
        names = ("dist_token", *(stem + name for name in _REGISTERS))
        keys.append(key("registers", next(name for name in names if name in shapes)))
    if config.mask_token:
        keys.append(key("mask_token", "mask_token", drop=3 - len(shapes["mask_token"])))
    affine = config.norm == "layer"
    for ours, theirs, there in (
        ("patch_norm", "patch_embed.norm", config.patch_norm),
        ("pre_norm", "norm_pre", config.pre_norm),
        ("norm", "norm", config.final_norm),
        ("pool_norm", "fc_norm", config.pool_norm),
    ):
        keys += layer(ours, theirs, bias=affine) if there else []
    if config.pool in ("map", "map_all"):
        keys.append(key("pool.probe", "attn_pool.latent"))
        for part in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2"):
            keys += layer(f"pool.{part}", f"attn_pool.{part}")
    if config.num_classes:
        keys += layer("head", "head")
    if config.class_input == "distilled":
        keys += layer("head_dist", "head_dist")
    first, second = _mlp(shapes)
    scales = _scale(shapes) or ()
    turned = reordered(order, 2 * config.num_heads, kept=config.embed_dim) if order else None
    apart = "blocks.0.attn.q_proj.weight" in shapes
    for i in range(config.depth):
        block = f"blocks.{i}"
        keys += layer(f"{block}.norm1", f"{block}.norm1", bias=affine)
        if config.film_dim:  # OpenVLA-OFT
            keys += layer(f"{block}.film.scale", f"{block}.scale") + layer(f"{block}.film.shift", f"{block}.shift")
        qkv = tuple(f"{block}.attn.{part}_proj" for part in "qkv") if apart else (f"{block}.attn.qkv",)
        keys.append(key(f"{block}.attn.qkv.weight", tuple(f"{name}.weight" for name in qkv), layout=turned))
        if config.qkv_bias:
            masked = None if config.key_bias else _KEY_MASKED
            bias, layout = tuple(f"{name}.bias" for name in qkv), turned
            if "blocks.0.attn.q_bias" in shapes:
                bias = (f"{block}.attn.q_bias", ZEROS, f"{block}.attn.v_bias")
            elif apart and not config.key_bias:
                bias = (bias[0], ZEROS, bias[2])
            else:
                layout = turned or masked
            keys.append(key(f"{block}.attn.qkv.bias", bias, layout=layout))
        if config.inner_norm == "both":
            keys += layer(f"{block}.attn.inner", f"{block}.attn.norm", bias=affine)
        keys += layer(f"{block}.attn.proj", f"{block}.attn.proj", bias=config.proj_bias)
        keys += layer(f"{block}.norm2", f"{block}.norm2", bias=affine)
        keys += layer(f"{block}.mlp.fc1", tuple(f"{block}.mlp.{part}" for part in first), bias=config.mlp_bias)
        if config.inner_norm != "none":
            keys += layer(f"{block}.mlp.norm", f"{block}.mlp.norm", bias=affine)
        keys += layer(f"{block}.mlp.fc2", f"{block}.mlp.{second}", bias=config.mlp_bias)
        for j, scale in enumerate(scales, 1):
            keys.append(key(f"{block}.residual{j}.scale", f"{block}.{scale}"))
    return keys
