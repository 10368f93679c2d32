"""Fields of config.json and rows of key tables that families share."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from vlm_vision.checkpoints.families.family import Json, Style
from vlm_vision.checkpoints.keys import Key, layer
from vlm_vision.nn.config import Activation, ViTConfig
from vlm_vision.preprocess import spec

BASE: Json = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_channels=3, image_size=224)
"""Defaults that the families share."""

HALF, IMAGENET, OPENAI = (
    dict(image_mean=list(mean), image_std=list(std)) for mean, std in (spec.HALF, spec.IMAGENET, spec.OPENAI)
)
"""Mean and deviation, as preprocessor_config.json has them."""

CLIP_PROCESSOR: Json = OPENAI | dict(
    do_center_crop=True, crop_size=224, size={"shortest_edge": 224}, default_to_square=False, resample=3
)
"""What CLIPImageProcessor and its copies do where preprocessor_config.json is silent."""

CENTRED: Json = OPENAI | dict(size=[384, 384], min_size=14, do_pad=True, resample=3)
"""What JanusImageProcessor and its copies do where preprocessor_config.json is silent."""

BICUBIC_ANTIALIAS = "bicubic_antialias"
"""timm's rule of every family with a table of positions but NaFlex."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
ACTIVATION_NAMES: dict[str, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "relu": "relu",
}


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of a side or a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def common(config: Json) -> Json:
    """Fields of `ViTConfig` that every family calls the same."""
    patch = pair(config["patch_size"])
    if patch[0] != patch[1]:
        raise ValueError(f"config.json has patch_size {list(patch)}: only square patches are supported")
    return dict(
        image_size=pair(config["image_size"]),
        patch_size=patch[0],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        channels=config["num_channels"],
        norm_eps=float(config["layer_norm_eps"]),
    )


def activation(config: Json) -> Activation:
    """Ours for their hidden_act."""
    name = config["hidden_act"]
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json has hidden_act {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def activation_back(mlp: str) -> str:
    """The inverse of `activation`. Raises ValueError for an MLP that transformers' hidden_act cannot name."""
    if mlp not in ACTIVATION_NAMES:
        raise ValueError(f"transformers cannot express mlp {mlp!r} here: choose one of {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[mlp]


def gated(config: Json, field: str = "hidden_act") -> Activation:
    """Our gated MLP for the activation that their `field` names."""
    names: dict[Activation, Activation] = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh"}
    act = ACTIVATIONS.get(config[field])
    if act not in names:
        raise ValueError(f"{field} is {config[field]!r} in a gated MLP: expected silu, gelu or gelu_pytorch_tanh")
    return names[act]


def gated_back(mlp: str) -> str:
    """The inverse of `gated`."""
    names = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh"}
    if mlp not in names:
        raise ValueError(f"transformers cannot express mlp {mlp!r} here: choose one of {', '.join(names)}")
    return names[mlp]


def side(pair: tuple[int, int]) -> int | list[int]:
    """One number for a square, as public configs write it."""
    return pair[0] if pair[0] == pair[1] else list(pair)


def common_back(config: ViTConfig) -> Json:
    """The inverse of `common`."""
    return dict(
        image_size=side(config.image_size),
        patch_size=config.patch_size,
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        num_channels=config.channels,
        layer_norm_eps=config.norm_eps,
    )


def blocks(config: ViTConfig, rows: Callable[[int], Iterable[Key]]) -> list[Key]:
    """The rows of every block."""
    return [item for i in range(config.depth) for item in rows(i)]


def qkv(block: str, style: Style) -> tuple[str, ...]:
    """Names of the three attention inputs in the layouts of ViT and DINOv2."""
    if style == "memory":
        return tuple(f"{block}.attention.{part}_proj" for part in "qkv")
    return tuple(f"{block}.attention.attention.{part}" for part in ("query", "key", "value"))


def ratio(hidden: int, width: int) -> float:
    """A factor by which `int(width * factor)` is `hidden` again."""
    factor = hidden / width
    return factor if int(width * factor) == hidden else math.nextafter(factor, math.inf)


def num_labels(config: Json) -> int:
    """Classes of a classification head."""
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)


def square(config: ViTConfig) -> Json:
    """Native size, as image processors write it."""
    return {"height": config.image_size[0], "width": config.image_size[1]}


def block_keys(depth: int) -> list[Key]:
    """Rows of the blocks of an image or text tower."""
    keys = []
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"encoder.layers.{i}"
        keys += [
            *layer(f"{ours}.norm1", f"{theirs}.layer_norm1"),
            *layer(f"{ours}.attn.qkv", tuple(f"{theirs}.self_attn.{part}_proj" for part in "qkv")),
            *layer(f"{ours}.attn.proj", f"{theirs}.self_attn.out_proj"),
            *layer(f"{ours}.norm2", f"{theirs}.layer_norm2"),
            *layer(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1"),
            *layer(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2"),
        ]
    return keys
