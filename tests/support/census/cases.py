"""All rows of the census."""

from support.census import qwen
from support.census.case import Case

CASES: dict[str, Case] = {case.model_type: case for part in (qwen,) for case in part.CASES}
