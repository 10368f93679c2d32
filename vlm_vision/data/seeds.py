"""Chance that is a function of whole numbers: seeds, and what things are drawn from."""

import hashlib

Range = tuple[float, float]
"""(low, high), drawn from uniformly."""


def derive_seed(*numbers: int) -> int:
    """63 bits from whole numbers in order, such as the run's seed, the step, the row and the view.

    Where any of them differs, so does everything drawn from the seed; neighbors are not alike.
    """
    text = ",".join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def check_probabilities(of: object, *fields: str) -> None:
    """Raises ValueError where a field of `of` is no probability."""
    for field in fields:
        value = getattr(of, field)
        if not 0 <= value <= 1:
            raise ValueError(f"{field} of {type(of).__name__} is {value}: expected a probability between 0 and 1")


def check_range(of: object, field: str, least: float, most: float) -> None:
    """Raises ValueError where a field of `of` is no (low, high) in `least` <= low <= high <= `most`."""
    low, high = getattr(of, field)
    if not least <= low <= high <= most:
        raise ValueError(
            f"{field} of {type(of).__name__} is {(low, high)}: expected (low, high) with {least} <= low <= high <= {most}"
        )
