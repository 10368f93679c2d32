"""Layers of settings: YAML files and the command line, where a later layer overrides an earlier one.

Two rules are added to a plain override. An unknown key is an error that names the nearest key, or the new name of the key. A new
choice, such as another projector, removes the options of the earlier layer's choice (`REPLACES` of a group of settings).
"""

import dataclasses
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml
from jsonargparse import get_loader

from projectors.names import did_you_mean

COMMAND_LINE = "the command line"
_COMMANDS = ("help", "print_config", "config")
"""Flags of the parser itself."""

_ELSEWHERE = {"device": "accelerate chooses it: hide GPUs with CUDA_VISIBLE_DEVICES, or set ACCELERATE_USE_CPU=true"}
"""What is no setting -> where it is chosen."""

Nested = dict[str, Any]


@dataclass
class Layer:
    """One YAML file, or the flags between two files."""

    name: str
    values: Nested
    """Keys and values, nested as in YAML. Values of flags are text."""
    arguments: list[str]
    """The same as arguments of the command line."""

    @property
    def prefix(self) -> str:
        return "--" if self.name == COMMAND_LINE else ""


def read_layers(arguments: list[str]) -> list[Layer]:
    """The layers of a command line, in their order.

    Raises:
        ValueError: a YAML file that holds no keys.
        OSError: a file that cannot be read.
    """
    layers: list[Layer] = []
    rest = list(arguments)
    while rest:
        flag, is_joined, value = rest.pop(0).partition("=")
        has_value = bool(is_joined) or bool(rest and not rest[0].startswith("--"))
        taken = [f"{flag}{is_joined}{value}"]
        if has_value and not is_joined:
            value = rest.pop(0)
            taken.append(value)
        if flag == "--config" and has_value:
            layers.append(_read_file(value, taken))
            continue
        if not layers or layers[-1].name != COMMAND_LINE:
            layers.append(Layer(COMMAND_LINE, {}, []))
        layers[-1].arguments += taken
        if flag.startswith("--"):
            _insert(layers[-1].values, flag.removeprefix("--").rstrip("+").split("."), value)
    return layers


def check_keys(layer: Layer, settings: type, renamed: dict[str, str]) -> None:
    """Raise ValueError for a key that the settings do not have, with its new name or the nearest key.

    Args:
        renamed: old key, with dots -> key today.
    """
    for path, _ in _leaves(layer.values):
        for old, new in renamed.items():
            if (path == old or path.startswith(f"{old}.")) and not _has(settings, old):
                raise ValueError(f"{layer.name} has {layer.prefix}{old}, whose name is now {layer.prefix}{new}")
    _check(layer, layer.values, settings, "")


def replace_choices(layers: list[Layer], replaces: dict[str, tuple[str, ...]]) -> list[str]:
    """Take out of each file what a later layer replaces. Returns a note for each thing that was taken out.

    Args:
        replaces: key -> keys that it takes the place of in earlier layers, unless they have the same value for it.
    """
    notes = []
    for i, later in enumerate(layers):
        for key, replaced in replaces.items():
            if not (value := _value(later.values, key)):
                continue
            for earlier in layers[:i]:
                if earlier.name == COMMAND_LINE or _value(earlier.values, key) == value:
                    continue
                if names := [name for name in replaced if _value(earlier.values, name)]:
                    shown = "" if isinstance(value, dict) else f" {value}"
                    notes.append(f"{later.prefix}{key}{shown} replaces {', '.join(names)} of {earlier.name}")
                    for name in names:
                        _remove(earlier.values, name)
                    earlier.arguments = ["--config", yaml.safe_dump(earlier.values)]
    return notes


def _read_file(name: str, taken: list[str]) -> Layer:
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--config {name}: the file does not exist; pass a YAML file")
    values = get_loader("yaml")(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds no keys: expected YAML with lines such as steps: 1000")
    return Layer(name, values, taken)


def _insert(values: Nested, path: list[str], value: str) -> None:
    for key in path[:-1]:
        inner = values.get(key)
        values[key] = values = inner if isinstance(inner, dict) else {}
    if value.lstrip().startswith("{"):
        loaded = get_loader("yaml")(value)
        values[path[-1]] = loaded if isinstance(loaded, dict) else value
    else:
        values[path[-1]] = value


def _leaves(values: Nested, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and value:
            yield from _leaves(value, name)
        else:
            yield name, value


def _check(layer: Layer, values: Nested, group: type, path: str) -> None:
    hints = _keys(group)
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        if key not in hints:
            if layer.name == COMMAND_LINE and not path and key in _COMMANDS:
                continue
            near = f"; {_ELSEWHERE[key]}" if key in _ELSEWHERE else did_you_mean(key, hints)
            what = f"field of {path}" if is_typeddict(group) else "setting of this recipe"
            raise ValueError(f"{layer.name} has {layer.prefix}{name}, which is not a {what}{near}")
        for inner in _groups(hints[key]):
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    _check(layer, part, inner, name)


def _keys(group: type) -> dict[str, Any]:
    """Key -> type, of a dataclass or a typed dictionary."""
    hints = get_type_hints(group)
    return hints if is_typeddict(group) else {field.name: hints[field.name] for field in dataclasses.fields(group)}


def _groups(hint: Any) -> Iterator[type]:
    """The dataclasses and typed dictionaries that a value of this type may be, or hold in a list."""
    if is_typeddict(hint) or (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        yield hint
    elif get_origin(hint) in (Union, types.UnionType, list, tuple):
        for inner in get_args(hint):
            yield from _groups(inner)


def _has(settings: type, path: str) -> bool:
    group: type | None = settings
    for key in path.split("."):
        if group is None or key not in (hints := _keys(group)):
            return False
        group = next(_groups(hints[key]), None)
    return True


def _value(values: Nested, path: str) -> Any:
    """The value of a key with dots, or None."""
    place: Any = values
    for key in path.split("."):
        place = place.get(key) if isinstance(place, dict) else None
    return place


def _remove(values: Nested, path: str) -> None:
    *parents, last = path.split(".")
    place: Any = values
    for key in parents:
        place = place.get(key) if isinstance(place, dict) else None
    if isinstance(place, dict):
        place.pop(last, None)
