"""A projector that was recognized in a checkpoint, and what a reader makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.families import fields as families
from vlm_vision.checkpoints.keys import Key
from vlm_vision.checkpoints.towers import TowerWeights, WeightSource

ACTIVATIONS: dict[str, str] = {**families.ACTIVATIONS, "relu2": "relu_squared"}
"""transformers' name of an activation -> ours."""

ACTIVATION_NAMES: dict[str, str] = {**families.ACTIVATION_NAMES, "relu_squared": "relu2"}
"""Our name of an activation -> transformers'."""


@dataclass(frozen=True)
class Candidate:
    """A projector in a checkpoint, recognized by the name of one weight."""

    checkpoint: Checkpoint
    weights: WeightSource
    """All of the checkpoint."""
    before: str
    """Prefix of its names before those of the form, such as "model."."""

    @property
    def config(self) -> dict[str, Any]:
        """config.json; empty for a file alone."""
        return self.checkpoint.config

    def part(self, prefix: str, *extra: str) -> TowerWeights:
        """The weights under the prefix, and the extra ones under their whole names."""
        return TowerWeights(self.weights, self.before + prefix, extra=extra)

    def section(self, name: str) -> dict[str, Any]:
        """A part of config.json. Raises ValueError for a file alone: only config.json states such numbers."""
        if not self.config:
            raise ValueError(
                f"{self.checkpoint} has no config.json, whose {name} states what the weights of the projector do not: pass the "
                "folder of the whole model"
            )
        return self.config.get(name) or {}

    def merge_size(self) -> int:
        """Side of the squares of patches that the image processor says become one; 1 where it is silent."""
        for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            if self.checkpoint.has(name):
                described = self.checkpoint.json(name)
                return int(((described.get(part) or {}) if part else described).get("merge_size") or 1)
        return 1

    def activation(self, config: dict[str, Any], name: str, default: str) -> str:
        """Our name of the activation that the configuration calls `name`."""
        theirs = config.get(name) or default
        if theirs not in ACTIVATIONS:
            raise ValueError(f"{self.checkpoint} has {name} {theirs!r}, expected one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[theirs]


@dataclass(frozen=True)
class ProjectorSpec:
    """A projector in a checkpoint: what to build, and its weights."""

    name: str
    options: dict[str, Any]
    """Arguments of `projectors.build`, with `name`."""
    keys: list[Key]
    weights: TowerWeights


def shape_of(part: TowerWeights, name: str, dims: int) -> tuple[int, ...]:
    shape = part.shapes[name]
    if len(shape) != dims:
        raise ValueError(
            f"{name} has shape {list(shape)}, expected {dims} dimensions: this is not a projector of its form"
        )
    return shape


Reader = Callable[[Candidate], ProjectorSpec]
