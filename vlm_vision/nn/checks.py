"""Checks of the fields of a configuration: whole numbers, numbers, switches, and choices from a list of names."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from projectors.names import did_you_mean


def is_whole(value: object) -> bool:
    """Whether a value is an int, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_whole(field: str, value: object, least: int, most: int = 2**17) -> None:
    """Raise ValueError unless `value` is a whole number; `most` is more than any width, side or count of a transformer."""
    if not is_whole(value) or not least <= value <= most:  # type: ignore[operator]
        raise ValueError(f"{field} is {value!r}: it must be a whole number of at least {least} and at most {most}")


def check_switches(config: Any) -> None:
    """Raise ValueError if a field of a dataclass whose type is bool has another value than True or False."""
    for field in fields(config):
        if field.type is bool and not isinstance(value := getattr(config, field.name), bool):
            raise ValueError(f"{type(config).__name__}.{field.name} is {value!r}, expected True or False")


def check_choices(config: Any) -> None:
    """Raise ValueError if a field of a dataclass whose type is a Literal has a value that is none of its choices."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            check_choice(f"{type(config).__name__}.{name}", getattr(config, name), get_args(hint))


def check_choice(field: str, value: object, choices: Collection[str] | Collection[int]) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if not (isinstance(value, str) or is_whole(value)) or value not in choices:
        names = [str(choice) for choice in choices]
        raise ValueError(f"{field} is {value!r}, expected one of {', '.join(names)}{did_you_mean(value, names)}")
