"""LLaVA and Prismatic folders as models, by the reader of each."""

from typing import Any

import vlm_vision as vv
from vlm_vision.vlm.formats.llava import read_llava
from vlm_vision.vlm.formats.prismatic import read_prismatic


def load_llava(folder: Any, **options: Any) -> vv.VisionLanguageModel:
    return vv.VisionLanguageModel.from_parts(read_llava(folder, **options))


def load_prismatic(folder: Any, **options: Any) -> vv.VisionLanguageModel:
    return vv.VisionLanguageModel.from_parts(read_prismatic(folder, **options))
