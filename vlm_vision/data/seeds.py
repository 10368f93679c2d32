"""Randomness as a function of whole numbers: seeds, and ranges to draw from."""

import hashlib

Range = tuple[float, float]
"""(low, high) of a uniform distribution."""


def derive_seed(*numbers: int) -> int:
    """63 bits from whole numbers in order, such as the run's seed, the step, the row and the view.

    If any of them differs, so does everything drawn from the seed; adjacent numbers give unrelated seeds.
    """
    text = ",".join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def check_probabilities(of: object, *fields: str) -> None:
    """Raise ValueError where a field of `of` is not a probability."""
    for field in fields:
        value = getattr(of, field)
        if not 0 <= value <= 1:
            raise ValueError(f"{field} of {type(of).__name__} is {value}: expected a probability between 0 and 1")


def check_range(of: object, field: str, least: float, most: float) -> None:
    """Raise ValueError where a field of `of` is not a (low, high) in `least` <= low <= high <= `most`."""
    low, high = getattr(of, field)
    if not least <= low <= high <= most:
        raise ValueError(
            f"{field} of {type(of).__name__} is {(low, high)}: expected (low, high) with {least} <= low <= high <= {most}"
        )
