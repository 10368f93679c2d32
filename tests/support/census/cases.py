"""All rows of the census."""

from support.census import clip_kin, qwen, siglip_kin
from support.census.case import Case

CASES: dict[str, Case] = {case.name: case for part in (qwen, clip_kin, siglip_kin) for case in part.CASES}
