"""Named architectures: the public models of every family.

`config("dinov2_large")` gives the `ViTConfig` of the public checkpoint of that name; `create("siglip_base_patch16_224")`
builds it with random weights. `public_id("qwen3_vl_4b")` names the checkpoint of a tower that comes inside a vision-language
model. Sizes are in the family's record, and in `vlm.published`, of `vlm_vision.checkpoints.families`.
"""

import dataclasses
import difflib
from typing import Any, NamedTuple

from vlm_vision.checkpoints.families.all import ALL
from vlm_vision.checkpoints.families.sizes import SIZES
from vlm_vision.checkpoints.families.vlm.published import PUBLISHED
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.vit import VisionTransformer


class _Preset(NamedTuple):
    group: str
    """Name that the models of one kind share."""
    family: str
    """Name in `vlm_vision.checkpoints.families`."""
    fields: dict[str, Any]
    """Fields of `ViTConfig`."""
    id: str | None = None
    """Public checkpoint."""


def _table() -> dict[str, _Preset]:
    table: dict[str, _Preset] = {}
    for family in ALL:
        for presets in family.presets:
            for size, patches, differs in presets.rows:
                for part in patches.split():
                    patch, _, sides = part.partition(":")
                    for side in sides.split(","):
                        name = presets.label.format(name=presets.name, size=size, patch=patch, side=side)
                        fields = (SIZES | dict(presets.sizes))[size] | presets.fields | differs
                        shape = dict(patch_size=int(patch), image_size=(int(side), int(side)))
                        table[name] = _Preset(presets.name, family.name, fields | shape)
    for tower in PUBLISHED:
        config = tower.config
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        table[tower.name] = _Preset(tower.group, tower.family, fields, tower.id)
    return table


_TABLE = _table()


def names() -> list[str]:
    """All preset names."""
    return list(_TABLE)


def family(name: str) -> str:
    """Name that the presets of one kind share, such as "openclip" or "deit3"."""
    return _row(name).group


def checkpoint_family(name: str) -> str:
    """Family of the preset `name` in `vlm_vision.checkpoints`, whose layout its weights have."""
    return _row(name).family


def public_id(name: str) -> str | None:
    """A public checkpoint that contains the tower of the preset `name`; None for encoders that are published on their own."""
    return _row(name).id


def config(name: str, **changes: Any) -> ViTConfig:
    """Configuration of the preset `name`, with any field changed by keyword.

    Raises:
        ValueError: no preset has that name; near matches are listed.
    """
    known = {field.name for field in dataclasses.fields(ViTConfig)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"ViTConfig has no field {', '.join(unknown)}: expected some of {', '.join(sorted(known))}")
    return ViTConfig(**(_row(name).fields | changes))


def create(name: str, **changes: Any) -> VisionTransformer:
    """The preset `name` with random weights; fields change by keyword, as in `config`."""
    return VisionTransformer(config(name, **changes))


def _row(name: str) -> _Preset:
    if name not in _TABLE:
        near = difflib.get_close_matches(str(name), _TABLE, n=3, cutoff=0.5)
        near = near or [known for known in _TABLE if known.startswith(str(name))][:3]
        hint = f"did you mean {' or '.join(near)}?" if near else "`vlm-vision models` lists them"
        raise ValueError(f"no preset is called {name!r}: {hint}")
    return _TABLE[name]
