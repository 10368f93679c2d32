"""What every family of a HuggingFace folder needs: a `Family`, and the fields and rows that families share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from vlm_vision.checkpoints.keys import Key
from vlm_vision.nn.config import Activation, ViTConfig

Json = dict[str, Any]
Style = Literal["hub", "memory"]
"""Key layout: of the public hub, which `save_pretrained` writes; or of transformers 5 in memory, as a bare state dict."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
ACTIVATION_NAMES: dict[str, str] = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers: how its `config.json` becomes a `ViTConfig`, and its key table, both ways."""

    landmark: str
    """A weight that every checkpoint of the family has; what precedes it is the prefix of the vision part."""
    beside: tuple[str, ...]
    """Weights of the vision part that stand outside the prefix."""
    defaults: Json
    """Values that transformers assumes where config.json is silent."""
    read_config: Callable[[Json, frozenset[str]], ViTConfig]
    """(config with defaults, stored names without prefix) -> ours"""
    write_config: Callable[[ViTConfig], Json]
    keys: Callable[..., list[Key]]
    """(our config, style of the names, default "hub") -> key table"""
    architecture: str
    """Class of transformers that reads the bare tower."""
    preprocessor: Callable[[ViTConfig], Json]
    """The family's usual preprocessor_config.json, for a folder without one."""
    memory_mark: str = ".attention.q_proj."
    """Part of a name that only the layout of transformers in memory has."""
    prefix: str = ""
    """Prefix of the bare tower's weights on the public hub."""


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


def style_of(family: Family, names: Iterable[str]) -> Style:
    """The layout that stored names are in."""
    return "memory" if any(family.memory_mark in name for name in names) else "hub"


def num_labels(config: Json) -> int:
    """Classes of a classification head."""
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)


def square(config: ViTConfig) -> Json:
    """Native size, as image processors write it."""
    return {"height": config.image_size[0], "width": config.image_size[1]}


BASE: Json = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_channels=3, image_size=224)
"""Defaults that the families share."""
