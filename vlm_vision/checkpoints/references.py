"""Resize of the position table: the rule of each reference for each family."""

from collections.abc import Mapping

from projectors.names import did_you_mean
from vlm_vision.checkpoints.families.all import FAMILIES

RESIZE_BY_FAMILY: dict[str, Mapping[str, str]] = {name: family.resize for name, family in FAMILIES.items()}
"""family -> reference -> rule in `vlm_vision.nn.position.RESIZE`. DeiT, MAE, open_clip and big_vision resize when they load,
the others for each image; the numbers are the same."""


def resize_rule(family: str, reference: str) -> str:
    """The rule of `reference` for `family`.

    Raises:
        ValueError: the reference has none for that family.
    """
    rules = RESIZE_BY_FAMILY[family]
    if reference not in rules:
        hint = did_you_mean(reference, rules)
        raise ValueError(
            f"reference {reference!r} has no position resize for {family}: expected one of {', '.join(rules)}{hint}"
        )
    return rules[reference]
