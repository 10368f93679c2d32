"""Fields of a configuration by name, some or all of them, as YAML gives them: typed dictionaries and their checks."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypedDict, get_type_hints

from projectors.names import did_you_mean
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.text import TextConfig


def check_names(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not known, with the nearest one."""
    known = sorted(known)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f", expected one of {', '.join(known)}"
            raise ValueError(f"{where} has no {name!r}{hint}")


def _types(config: type) -> dict[str, Any]:
    """Name -> type of the fields of a dataclass."""
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config) if field.init}


VIT_FIELDS = _types(ViTConfig) | {"image_size": int | tuple[int, int]}
TEXT_FIELDS = {
    name: hint
    for name, hint in _types(TextConfig).items()
    if name not in ("vocab_size", "eos_id", "pad_id", "proj_dim")
}
"""Name -> type of what `vit_config` and `text_config` take."""

if TYPE_CHECKING:
    ViTFields = dict[str, Any]
    TextFields = dict[str, Any]
else:
    ViTFields = TypedDict("ViTFields", VIT_FIELDS, total=False)
    """Fields of `ViTConfig`, any of which may be left out; image_size may be one side in pixels."""
    TextFields = TypedDict("TextFields", TEXT_FIELDS, total=False)
    """Fields of `TextConfig`, any of which may be left out, without those that follow from tokenizer and image tower."""


def vit_config(given: ViTFields) -> ViTConfig:
    """The configuration with these fields; image_size may be one side in pixels.

    Raises:
        ValueError: fields that are unknown, missing or impossible.
    """
    _check_fields(ViTConfig, given, VIT_FIELDS)
    side: Any = given["image_size"]
    size: dict[str, Any] = {"image_size": (side, side) if isinstance(side, int) else side}
    return ViTConfig(**(given | size))


def text_config(given: TextFields, **fixed: Any) -> TextConfig:
    """The configuration with these fields and those that are not `TextFields`.

    Raises:
        ValueError: fields that are unknown, missing or impossible.
    """
    _check_fields(TextConfig, given, TEXT_FIELDS)
    return TextConfig(**given, **fixed)


def _check_fields(config: type, given: Mapping[str, Any], types: dict[str, Any]) -> None:
    check_names(config.__name__, given, types)
    required = [field.name for field in fields(config) if field.default is MISSING and field.name in types]
    if missing := [name for name in required if name not in given]:
        raise ValueError(f"{config.__name__} needs {', '.join(missing)} too: give a value for each")
