"""Checks of the fields of a configuration: whole numbers, numbers, switches, and choices from a list of names."""

from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from projectors.names import did_you_mean


def is_whole(value: object) -> bool:
    """Whether a value is an int, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_whole(field: str, value: object, least: int, most: int = 2**17) -> None:
    """Raise ValueError unless `value` is a whole number; `most` is more than any width, side or count of a transformer."""
    if not is_whole(value) or not least <= value <= most:  # type: ignore[operator]
        raise ValueError(f"{field} is {value!r}: it must be a whole number of at least {least} and at most {most}")


def check_sides(field: str, value: object, least: int, expected: str) -> None:
    """Raise ValueError unless `value` is a tuple of two whole numbers of at least `least`."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{field} is {value!r}, expected {expected}")
    for side in value:
        check_whole(field, side, least)


def check_number(field: str, value: object, fits: Callable[[float], bool], expected: str) -> None:
    """Raise ValueError unless `value` is a float (or the whole number 0) that fits; None passes where `expected` ends with it."""
    if value is None and expected.endswith("None"):
        return
    if not (isinstance(value, float) or (is_whole(value) and value == 0)) or not fits(value):  # type: ignore[arg-type]
        raise ValueError(f"{field} is {value!r}, expected {expected}")


def check_choices(config: Any) -> None:
    """Raise ValueError if a field of a dataclass has another value than its type allows: True and False, or those of a Literal."""
    for name, hint in get_type_hints(type(config)).items():
        field, value = f"{type(config).__name__}.{name}", getattr(config, name)
        if hint is bool and not isinstance(value, bool):
            raise ValueError(f"{field} is {value!r}, expected True or False")
        if get_origin(hint) is Literal:
            check_choice(field, value, get_args(hint))


def check_choice(field: str, value: object, choices: Collection[str] | Collection[int]) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if not (isinstance(value, str) or is_whole(value)) or value not in choices:
        names = [str(choice) for choice in choices]
        raise ValueError(f"{field} is {value!r}, expected one of {', '.join(names)}{did_you_mean(value, names)}")


def check_saved(state: Any, kind: type, what: str) -> None:
    """Raise ValueError unless `state` holds fields of the dataclass `kind`, and all that have no default."""
    if not isinstance(state, dict):
        raise ValueError(f"the saved {what} is {state!r}, expected an object: save it again")
    known = {field.name: field.default for field in fields(kind)}
    if unknown := sorted(map(str, state.keys() - known.keys())):
        raise ValueError(f"the saved {what} has unknown fields {', '.join(unknown)}: it needs a newer vlm_vision")
    if missing := [name for name, default in known.items() if default is MISSING and name not in state]:
        raise ValueError(f"the saved {what} lacks {', '.join(missing)}: the file was edited; save it again")
