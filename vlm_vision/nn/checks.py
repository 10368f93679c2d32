"""Checks of the fields of a configuration: whole numbers, numbers, switches, and choices; and the bounds of `ViTConfig`'s numbers."""

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


NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "norm_eps": (lambda x: 0 < x < 1, "a small positive number"),
    "outer_eps": (lambda x: 0 <= x < 1, "a small number, or 0.0"),
    "qk_eps": (lambda x: 0 <= x < 1, "a small number, or 0.0"),
    "rope_base": (lambda x: 1 < x < 1e9, "a number above 1"),
    "mlp_limit": (lambda x: 0 < x < 1e9, "a positive number such as 10.0, or None"),
    "attention_scale": (lambda x: 0 < x < 1e9, "a positive number such as 0.125, or None"),
    "layer_scale": (lambda x: abs(x) < 1e9, "a number such as 1e-5, or None"),
    "patch_drop": (lambda x: 0 <= x < 1, "a share of at least 0 and below 1"),
    "drop_path": (lambda x: 0 <= x < 1, "a share of at least 0 and below 1"),
}
AT_LEAST_ONE = (
    "patch_size", "embed_dim", "depth", "num_heads", "mlp_dim", "channels", "temporal_patch", "deepstack_merge",
)  # fmt: skip
AT_LEAST_ZERO = (
    "num_registers", "position_prefix", "film_dim", "pool_dim", "pool_heads", "pool_mlp_dim", "num_classes", "axis_length", "axis_first", "head_width",
    "num_kv_heads", "window", "merge_dim", "deepstack_dim", "time_position",
)  # fmt: skip
