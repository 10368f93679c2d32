"""open_clip folders (`open_clip_config.json` and weights) and bare state dicts: CLIP towers, and timm trunks (SigLIP)."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.families.all import resize_rule
from vlm_vision.checkpoints.keys import TRANSPOSED, Key, key, layer
from vlm_vision.checkpoints.open_clip.preprocess import from_open_clip
from vlm_vision.checkpoints.timm import layout as timm_layout
from vlm_vision.checkpoints.timm import reader as timm
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, Format, Hints, Tower, TowerWeights, only
from vlm_vision.checkpoints.weights import STEMS, SUFFIXES, WeightFiles
from vlm_vision.files import read_json
from vlm_vision.nn.config import Pool, ViTConfig

Json = dict[str, Any]

FAMILIES = ("clip_vision_model", "siglip_vision_model")
CONFIG = "open_clip_config.json"
LANDMARKS = ("visual.conv1.weight", "visual.trunk.patch_embed.proj.weight", "visual.trunk.embeds.proj.weight")

_UNKNOWN = (
    "attentional_pool", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc",
    "final_ln_after_pool", "block_type",
)  # fmt: skip
"""Switches of open_clip's vision tower that are not supported."""


_POOLS: dict[str, Pool] = {"tok": "cls", "avg": "mean"}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether a folder has open_clip's configuration, or a file of weights open_clip's names."""
    if checkpoint.is_folder:
        return checkpoint.has(CONFIG)
    return checkpoint.path.suffix in SUFFIXES and any(name.endswith(LANDMARKS) for name in checkpoint.weights.shapes)


def own_weights(checkpoint: Checkpoint) -> WeightFiles:
    """open_clip's file where the folder also has that of transformers, as on the hub."""
    own = [name for name in STEMS if name.startswith("open_clip") and checkpoint.has(name)]
    if not own and not any(checkpoint.has(name) or checkpoint.has(f"{name}.index.json") for name in STEMS):
        own = sorted(file.name for file in checkpoint.path.glob("*.pt"))  # of open_clip's own training: epoch_3.pt
        if len(own) > 1:
            raise ValueError(f"{checkpoint} holds {', '.join(own[:5])}: pass the path of one of them")
    return checkpoint.weights_in(own[0]) if own else checkpoint.weights


def read(checkpoint: Checkpoint, hints: Hints) -> list[Tower]:
    """The vision tower of a folder or file.

    Raises:
        ValueError: a tower other than a vision transformer, or with unsupported parts; a file without an architecture.
    """
    if not checkpoint.is_folder:
        return [
            _tower(checkpoint.path, described_by(checkpoint.path, checkpoint.weights, hints), checkpoint.weights, hints)
        ]
    only(checkpoint, hints, "num_heads")
    return [_tower(checkpoint.path, checkpoint.json(CONFIG), own_weights(checkpoint), hints)]


def _tower(path: Path, config: Json, weights: WeightFiles, hints: Hints) -> Tower:
    """The tower from open_clip_config.json and the weights; `path` is for errors."""
    model = config.get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    preprocess = config.get("preprocess_cfg") or {}
    if not isinstance(model, dict) or not isinstance(vision, dict) or not isinstance(preprocess, dict):
        raise ValueError(f"{path / CONFIG} has no model_cfg with a vision_cfg: download it again")
    stem = next((name.removesuffix(mark) for mark in LANDMARKS for name in weights.shapes if name.endswith(mark)), None)
    if stem is None:
        raise ValueError(f"{path} holds no weight ending in {' or '.join(LANDMARKS)}: it has no vision transformer")
    part = TowerWeights(weights, f"{stem}visual.")
    try:
        if "timm_model_name" in vision:
            return _trunk(path, stem, vision, preprocess, weights, hints)
        vit = _config(part.shapes, model, vision, hints)
        spec = from_open_clip(preprocess, vit.image_size)
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{path}: a value or weight is missing or of the wrong kind ({error!r})") from None
    except ValueError as error:
        raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from None
    return Tower(
        source=str(path),
        format="open_clip",
        family="clip_vision_model",
        reference="open_clip",
        config=vit,
        keys=_keys(vit),
        weights=part,
        preprocess=spec,
    )


def described_by(path: Path, weights: WeightFiles, hints: Hints) -> Json:
    """The configuration of a bare state dict, which states all except the activation: `hints.architecture` states that.

    Raises:
        ValueError: no architecture is passed.
    """
    if hints.architecture is None and (path.parent / CONFIG).is_file():
        return read_json(path.parent / CONFIG)
    if hints.architecture is None:
        raise ValueError(
            f"{path} is a state dict of open_clip that does not state its activation: pass "
            'architecture="ViT-B-32" (exact GELU) or "ViT-B-32-quickgelu" (OpenAI\'s and DFN\'s weights), or the '
            f"folder with {CONFIG}"
        )
    if any(name.endswith(LANDMARKS[1:]) for name in weights.shapes):
        name = _timm_name(hints.architecture)
        if "siglip" not in name:
            return {"model_cfg": {"vision_cfg": {"timm_model_name": name}}}
        half = [0.5] * 3
        preprocess = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}
        vision = {"timm_model_name": name, "timm_pool": "map"}
        return {"model_cfg": {"vision_cfg": vision}, "preprocess_cfg": preprocess}
    return {"model_cfg": {"quick_gelu": "quickgelu" in hints.architecture, "vision_cfg": {}}}


def _timm_name(architecture: str) -> str:
    """timm's name of the tower of an open_clip model: "ViT-B-16-SigLIP-256" -> vit_base_patch16_siglip_256."""
    match = re.fullmatch(r"ViT-(B|L|SO400M|gopt)-(\d+)-SigLIP2?(?:-i18n)?(?:-(\d+))?", architecture)
    if match is None:
        return architecture
    sizes = {"B": "base", "L": "large", "SO400M": "so400m", "gopt": "giantopt"}
    return f"vit_{sizes[match[1]]}_patch{match[2]}_siglip_{match[3] or 224}"


def _trunk(path: Path, stem: str, vision: Json, preprocess: Json, weights: WeightFiles, hints: Hints) -> Tower:
    """A timm model inside open_clip; its projection, if there is one, is `visual.head.proj`."""
    arguments = dict(vision.get("timm_model_kwargs") or {})
    pool = vision.get("timm_pool", "avg")
    if pool not in ("map", "token", "avg"):
        raise ValueError(f"{path} has timm_pool {pool!r}: expected map, token or avg")
    if any(name.startswith(f"{stem}visual.head.") for name in weights.shapes):
        raise ValueError(f"{path} has a projection after its timm tower, which is not supported: load the trunk alone")
    arguments["global_pool"] = pool
    side = vision.get("image_size", arguments.get("img_size"))
    part = TowerWeights(weights, f"{stem}visual.trunk.", ignored=timm_layout.is_ignored_weight)
    described = {} if side is None else {"input_size": [3, *((side, side) if isinstance(side, int) else side)]}
    name = str(vision["timm_model_name"])
    found = timm.tower(str(path), part, name, arguments, described, hints)
    spec = from_open_clip(preprocess, found.config.image_size)
    return replace(found, format="open_clip", reference="open_clip", preprocess=spec)


def _config(shapes: Mapping[str, tuple[int, ...]], model: Json, vision: Json, hints: Hints) -> ViTConfig:
    if not isinstance(vision.get("layers", 12), int):
        raise ValueError("the vision tower is a ResNet: expected a vision transformer")
    for switch in _UNKNOWN:
        if vision.get(switch):
            raise ValueError(f"vision_cfg has {switch}={vision[switch]!r}, which is not supported")
    dim, channels, patch, _ = shapes["conv1.weight"]
    rows = shapes["positional_embedding"][0] - 1
    size = vision.get("image_size")
    if size is None or isinstance(size, int):
        size = (size, size) if size else (round(rows**0.5) * patch,) * 2
    depth = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("transformer.resblocks."))
    approximate = (vision.get("act_kwargs") or {}).get("approximate") == "tanh"
    width = vision.get("head_width", 64)
    if dim % width:
        raise ValueError(f"head_width {width} does not divide width {dim}: pass num_heads=...")
    return ViTConfig(
        image_size=(int(size[0]), int(size[1])),
        patch_size=patch,
        channels=channels,
        embed_dim=dim,
        depth=depth,
        num_heads=hints.num_heads or dim // width,
        mlp_dim=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        mlp="quick_gelu" if model.get("quick_gelu") else "gelu_tanh" if approximate else "gelu",
        norm_eps=float((vision.get("norm_kwargs") or {}).get("eps", 1e-5)),
        layer_scale=1.0 if "transformer.resblocks.0.ls_1.gamma" in shapes else None,
        patch_bias=False,
        patch_drop=0.0,
        pre_norm="ln_pre.weight" in shapes,
        position_prefix=1,
        position_resize=resize_rule("clip_vision_model", "open_clip"),
        pool=_POOLS[vision.get("pool_type", "tok")],
        pool_head="linear" if "proj" in shapes else "none",
        pool_dim=shapes["proj"][1] if "proj" in shapes else 0,
    )


def _keys(config: ViTConfig) -> list[Key]:
    keys = [
        key("patch_embed.weight", "conv1.weight"),
        key("cls_token", "class_embedding", drop=2),
        key("position.table", "positional_embedding", drop=1),
        *layer("norm", "ln_post"),
    ]
    if config.pre_norm:
        keys += layer("pre_norm", "ln_pre")
    if config.pool_head == "linear":
        keys.append(key("pool_head.weight", "proj", layout=TRANSPOSED))
    return keys + block_keys(config.depth, scaled=config.layer_scale is not None)


def block_keys(depth: int, *, scaled: bool) -> list[Key]:
    """Rows of the blocks of an image or text tower; `scaled`: with LayerScale."""
    keys = []
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"transformer.resblocks.{i}"
        keys += [
            *layer(f"{ours}.norm1", f"{theirs}.ln_1"),
            key(f"{ours}.attn.qkv.weight", f"{theirs}.attn.in_proj_weight"),
            key(f"{ours}.attn.qkv.bias", f"{theirs}.attn.in_proj_bias"),
            *layer(f"{ours}.attn.proj", f"{theirs}.attn.out_proj"),
            *layer(f"{ours}.norm2", f"{theirs}.ln_2"),
            *layer(f"{ours}.mlp.fc1", f"{theirs}.mlp.c_fc"),
            *layer(f"{ours}.mlp.fc2", f"{theirs}.mlp.c_proj"),
        ]
        if scaled:
            keys.append(key(f"{ours}.residual1.scale", f"{theirs}.ls_1.gamma"))
            keys.append(key(f"{ours}.residual2.scale", f"{theirs}.ls_2.gamma"))
    return keys


FORMAT = Format("open_clip", FAMILIES, recognises, read)
