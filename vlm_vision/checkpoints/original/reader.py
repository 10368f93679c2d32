"""State dicts of the original code, one file each: DeiT, DeiT-III, MAE, DINO, DINOv2, DINOv3 (facebookresearch), timm.

The family of a file follows from its content, in this order:

| what | family |
|---|---|
| storage tokens or rotary periods | DINOv3 |
| mask token and LayerScale, with or without register tokens | DINOv2 |
| LayerScale as `gamma_1`, positions without class token | DeiT-III |
| a distillation token, or `{"model": ...}` with a head | DeiT |
| `{"model": ...}` without a head, or with a decoder, or with fc_norm | MAE |
| only a ViT | DINO |
| a ViT with a head, attention pooling or a norm before the blocks | timm: `architecture` must state which |
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.families.all import resize_rule
from vlm_vision.checkpoints.timm import layout as timm_layout
from vlm_vision.checkpoints.timm import reader as timm
from vlm_vision.checkpoints.timm.preprocess import usual_cfg
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, Format, Hints, Tower, TowerWeights
from vlm_vision.checkpoints.weights import SUFFIXES, WeightFiles
from vlm_vision.nn.config import ViTConfig
from vlm_vision.preprocess.spec import IMAGENET, Preprocess

FAMILIES = ("deit", "vit_mae", "dino", "dinov2", "dinov2_with_registers", "dinov3_vit")

_HEAD_DIM = 64
"""Channels of an attention head in every model of these repositories except those in `_HEADS`."""

_HEADS = {1280: 16}
"""width -> heads of MAE-H and DeiT-III-H."""

_EPS = {"dinov3_vit": 1e-5}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is a file of weights; their family follows from their names."""
    return not checkpoint.is_folder and checkpoint.path.suffix in SUFFIXES


def read(checkpoint: Checkpoint, hints: Hints) -> list[Tower]:
    """The tower of a file.

    Raises:
        ValueError: several towers or none, a head count or an architecture that the file does not state.
    """
    path, weights = checkpoint.path, checkpoint.weights
    prefix = choose(path, timm_layout.prefixes(list(weights.shapes)), hints)
    part = TowerWeights(
        weights,
        prefix,
        ignored=lambda name: timm_layout.is_ignored_weight(name) or name.startswith(("decoder_", "mask_token_dec")),
        spellings=timm_layout.IN_CHUNKS,
    )
    if hints.architecture is not None:
        return [timm.tower(str(path), part, hints.architecture, {}, usual_cfg(hints.architecture), hints)]
    names = set(weights.shapes)
    family = _family(path, prefix, names)
    if family in ("vit_mae",) and f"{prefix}decoder_embed.weight" in names:
        part = TowerWeights(part, ignored=lambda name: name == "mask_token")  # the decoder's
    try:
        fields = timm_layout.fields(part.shapes, image_size=_native_size(path, part.shapes, hints))
        if f"{prefix}rope_embed.periods" in names:
            fields["rope_base"] = _rope_base(weights.get(f"{prefix}rope_embed.periods").float())
        _check_whole(family, fields, names, prefix)
        config = _config(path, family, fields, _num_heads(path, fields["embed_dim"], names, weights, prefix, hints))
        table = timm_layout.key_table(config, part.shapes)
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{path} is not a state dict of a vision transformer ({error!r}): download it again") from None
    except ValueError as error:
        raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from None
    tower = Tower(
        source=str(path),
        format="pth",
        family=family,
        reference="original",
        config=config,
        keys=table,
        weights=part,
        preprocess=_preprocess(family, config),
    )
    return [tower]


def _native_size(path: Path, shapes: Mapping[str, tuple[int, ...]], hints: Hints) -> tuple[int, int] | None:
    """(height, width) in pixels of the position table: None for a square one, else the requested size, if that fits it.

    Raises:
        ValueError: a table that may be square, or of the requested size.
    """
    patch, size = shapes.get("patch_embed.proj.weight"), hints.image_size
    if size is None or patch is None or "pos_embed" not in shapes or len(patch) != 4:
        return None
    rows, columns = size[0] // patch[2], size[1] // patch[2]
    prefix = int("cls_token" in shapes)
    own = shapes["pos_embed"][1] - rows * columns
    if rows == columns or own not in (0, prefix, prefix + int("dist_token" in shapes)):
        return None
    if (side := math.isqrt(rows * columns)) ** 2 == rows * columns:
        raise ValueError(
            f"{path}: its position table is of {side}x{side} patches, or of {rows}x{columns} as image_size asks for: load it "
            "without image_size if it is square, and set encoder.preprocess to encoder.preprocess.at(height, width)"
        )
    return size


def choose(path: Path, prefixes: list[str], hints: Hints) -> str:
    """The prefix of the one tower, or of the one that `hints.part` names."""
    if hints.part is not None:
        prefixes = [prefix for prefix in prefixes if prefix.rstrip(".") == hints.part.rstrip(".")]
    if len(prefixes) == 1:
        return prefixes[0]
    if not prefixes:
        marks = " or ".join(timm_layout.LANDMARKS)
        raise ValueError(
            f"{path} holds no weight {'' if hints.part is None else hints.part + '.'}{marks}: expected a vision transformer "
            "of a known layout; pass the folder with its config.json"
        )
    parts = ", ".join(prefix.rstrip(".") or "the top level" for prefix in prefixes)
    raise ValueError(f'{path} holds {len(prefixes)} towers ({parts}): choose one by part="..."')


def _family(path: Path, prefix: str, names: set[str]) -> str:
    has = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    wrapped = prefix == "model."
    scaled = any(re.fullmatch(r"blocks\.(\d+\.)?0\.ls1\.gamma", name) for name in has)
    if "storage_tokens" in has or "rope_embed.periods" in has:
        return "dinov3_vit"
    if scaled and "mask_token" in has:
        return "dinov2_with_registers" if "register_tokens" in has else "dinov2"
    if "blocks.0.gamma_1" in has or "dist_token" in has:
        return "deit"
    if any(name.startswith("decoder_") for name in has) or (wrapped and "fc_norm.weight" in has):
        return "vit_mae"
    foreign = "attn_pool.latent" in has or "norm_pre.weight" in has or "reg_token" in has or scaled
    if not foreign and wrapped:
        return "deit" if "head.weight" in has else "vit_mae"
    if not foreign and "head.weight" not in has and "cls_token" in has:
        return "dino"
    raise ValueError(
        f"{path} is a state dict of timm's layout that does not state its activation, epsilon and heads: "
        'pass architecture="...", timm\'s name such as "vit_base_patch16_siglip_224"'
    )


def _check_whole(family: str, fields: dict, names: set[str], prefix: str) -> None:
    """Raise ValueError for weights that every file of the family has: without them it would load as another model."""
    rotary = family == "dinov3_vit"
    there = {
        "cls_token": fields["class_token"],
        "pos_embed": rotary or "position" not in fields,
        "rope_embed.periods": not rotary or f"{prefix}rope_embed.periods" in names,
        "storage_tokens": not rotary or fields["num_registers"] > 0,
        "patch_embed.proj.bias": fields["patch_bias"],
        "blocks.0.attn.qkv.bias": rotary or fields["qkv_bias"],
        "blocks.0.attn.proj.bias": fields["proj_bias"],
        "blocks.0.mlp.fc2.bias": rotary or fields["mlp_bias"],
        "blocks.0.norm1.bias": fields["norm"] == "layer",
        "norm.weight": fields["final_norm"] or fields["pool_norm"],
    }
    if lacking := [name for name, is_there in there.items() if not is_there]:
        raise ValueError(
            f"it lacks {', '.join(lacking)}, which every {family} has: the file is incomplete, download it again"
        )


def _num_heads(path: Path, dim: int, names: set[str], weights: WeightFiles, prefix: str, hints: Hints) -> int:
    if hints.num_heads is not None:
        return hints.num_heads
    if f"{prefix}rope_embed.periods" in names:
        return dim // (4 * weights.shapes[f"{prefix}rope_embed.periods"][0])
    if dim in _HEADS:
        return _HEADS[dim]
    if dim % _HEAD_DIM:
        raise ValueError(
            f"{path} does not state its number of attention heads, and width {dim} is not a multiple of {_HEAD_DIM}: "
            "pass num_heads=..."
        )
    return dim // _HEAD_DIM


def _rope_base(periods: Tensor) -> float:
    """The base of rotary periods base**(i / n), i < n, to two digits: they may be stored in half precision."""
    n = len(periods)
    base = float(f"{periods[-1].item() ** (n / max(1, n - 1)):.2g}")
    if ((periods / base ** (torch.arange(n) / n)).log().abs() > 0.02).any():
        raise ValueError("its rotary periods are not powers of one base, as with min_period and max_period")
    return base


def _config(path: Path, family: str, fields: dict, num_heads: int) -> ViTConfig:
    pool = "cls_dist" if fields.get("class_input") == "distilled" else "mean" if fields["pool_norm"] else "cls"
    if family == "deit" and fields["num_registers"]:
        pool = "cls_dist"
    if family == "dinov3_vit":
        fields["key_bias"] = not fields["qkv_bias"]
    return ViTConfig(
        **fields,
        num_heads=num_heads,
        norm_eps=_EPS.get(family, 1e-6),
        position_resize=resize_rule(family, "original"),
        pool=pool,
    )


def _preprocess(family: str, config: ViTConfig) -> Preprocess:
    """Evaluation transform of the repository; DINOv2's at 224 px, though its table is for 518."""
    mean, std = IMAGENET
    if family == "dinov3_vit":
        return Preprocess(
            resize="squash",
            resize_to=(256, 256),
            resample="bilinear",
            kernel="float",
            crop=None,
            rescale=1 / 255,
            mean=mean,
            std=std,
        )
    small = family.startswith("dinov2")
    patch = config.patch_size
    side = max(patch, 224 // patch * patch) if small else config.image_size[0]
    edge = round(side * 256 / 224)
    return Preprocess(
        resize="shortest_edge",
        resize_to=(edge, edge),
        resample="bicubic",
        crop=(side, side),
        crop_rounding="half_even",
        rescale=1 / 255,
        mean=mean,
        std=std,
    )


FORMAT = Format("pth", FAMILIES, recognises, read)
