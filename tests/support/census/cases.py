"""All rows of the census."""

from support.census import gemma4, qwen
from support.census.case import Case

CASES: dict[str, Case] = {case.name: case for part in (qwen, gemma4) for case in part.CASES}
