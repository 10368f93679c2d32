"""The record of a family: its names, its layout in transformers, its positions, its images, its public models."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vlm_vision.checkpoints.keys import Key, Spellings
from vlm_vision.nn.config import ViTConfig

Json = dict[str, Any]
Style = Literal["hub", "memory"]
"""Key layout: of the public hub, which `save_pretrained` writes; or of transformers 5 in memory, as a bare state dict."""


@dataclass(frozen=True, kw_only=True)
class WholeModel:
    """A model of transformers that contains a tower of the family, unless its vision_config names another one."""

    model_type: str
    tower: str = ""
    """model_type of its tower where vision_config names none; "" for the family's name."""
    outer_fields: Json = field(default_factory=dict)
    """Fields of the tower that config.json states outside vision_config, with transformers' default."""
    around: str = ""
    """Name of the part of config.json that has the vision_config, with dots if it lies deeper; "" for the top level."""
    part: str = "vision_config"
    """Name of the part, there, that describes the tower."""
    older_part: str = ""
    """Name of that part in older files."""
    always: bool = False
    """True for a tower that is this one under any name in vision_config: public files have a name from other code."""
    checked: bool = False
    """The other parts are those of `Family.siblings`: a weight elsewhere is an error."""
    preprocessor: Json | None = None
    """The usual preprocessor_config.json, where it is not the tower's."""


@dataclass(frozen=True, kw_only=True)
class Presets:
    """Public models of the family under one name, each with a row in a table of sizes."""

    name: str
    """First word of preset names."""
    fields: Json
    """Fields of `ViTConfig` that all of them share."""
    rows: tuple[tuple[str, str, Json], ...]
    """(name of the size, "patch:side,side patch:side" in pixels, fields that differ), see `row`."""
    sizes: Mapping[str, Json] = field(default_factory=dict)
    """Sizes that only these models have; the others are in `vlm_vision.checkpoints.families.sizes`."""
    label: str = "{name}_{size}_patch{patch}_{side}"
    """Form of a preset name."""


def row(size: str, patches: str, **differs: Any) -> tuple[str, str, Json]:
    """One row of `Presets`: `row("base", "16:224,384 32:224", pool_dim=512)` makes three models."""
    return size, patches, differs


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture with its layout on disk. To add one: docs/adding-a-family.md."""

    name: str
    """Name in this library: transformers' model_type of the tower."""
    aliases: Mapping[str, Json] = field(default_factory=dict)
    """Other model_types of the same tower -> defaults that differ there."""
    whole_models: tuple[WholeModel, ...] = ()
    """Models of transformers that contain the tower."""
    siblings: tuple[str, ...] = ()
    """Names, by prefix, of the other parts of these models, where they are checked."""
    connector: tuple[str, ...] = ()
    """Names, by prefix, inside the vision part, of what is read only where the key table asks for it: projectors."""

    architecture: str
    """Class of transformers that reads the bare tower."""
    written_as: str = ""
    """model_type under which transformers reads it, if that is another family's; "" for its own."""
    classifier: str = ""
    """model_type of the whole model whose config.json goes with a classification head; "" for the tower's own."""
    landmarks: tuple[str, ...]
    """A weight that every checkpoint of the family has, in each layout; what precedes it is the prefix of the vision part."""
    beside: tuple[str, ...] = ()
    """Weights of the vision part that stand outside the prefix."""
    prefix: str = ""
    """Prefix of the bare tower's weights on the public hub."""
    memory_mark: str = ".attention.q_proj."
    """Part of a name that only the layout of transformers in memory has."""
    spellings: Spellings = ()
    """Other names of weights, without prefix, and the usual ones: (regular expression, replacement), applied in order."""

    defaults: Json
    """Values that transformers assumes where config.json is silent."""
    read_config: Callable[[Json, frozenset[str]], ViTConfig]
    """(config with defaults, stored names without prefix) -> ours"""
    write_config: Callable[[ViTConfig], Json]
    """Ours -> config.json without model_type."""
    keys: Callable[..., list[Key]]
    """(our config, style of the names, default "hub") -> key table"""

    preprocessor: Callable[[ViTConfig], Json]
    """The usual preprocessor_config.json, for a folder without one."""
    class_row: bool = True
    """The position table has a row for the class token."""
    pixel_statistics: tuple[str, str] | None = None
    """Weights of the mean and the deviation by which the tower normalizes its pixels: here the preprocessing does. The last
    parts of their names are those of the fields of config.json."""
    buffers: tuple[str, ...] = ()
    """Stored whole numbers that repeat the field of config.json of their name: they decide where it is silent."""
    image_processors: Mapping[str, Json] = field(default_factory=dict)
    """Class of transformers that came with the family -> what it does where preprocessor_config.json is silent: keys of that
    file above `PLAIN` of `vlm_vision.checkpoints.hf.preprocess`; and "kernel", that of `Preprocess`, if not Pillow's."""
    resize: Mapping[str, str]
    """Reference by name -> its rule in `vlm_vision.nn.position.RESIZE` for positions off the native grid."""
    unresized: bool = False
    """No position table is resized: positions are rotary alone, computed, or in one table for rows and one for columns."""
    timm: Callable[[ViTConfig], str] | None = None
    """timm's architecture whose switches, under our arguments, give our numbers; None if timm cannot hold the family."""
    presets: tuple[Presets, ...] = ()
    """Public models."""

    def style_of(self, names: Iterable[str]) -> Style:
        """The layout that stored names are in."""
        return "memory" if any(self.memory_mark in name for name in names) else "hub"
