"""Public checkpoints of other projects as `VisionLanguageModel`s: what `from_pretrained` does with them."""

from pathlib import Path
from typing import Any

from vlm_vision.vlm.formats.llava import PROCESSORS, load_llava
from vlm_vision.vlm.formats.prismatic import load_prismatic
from vlm_vision.vlm.model import VisionLanguageModel


def load_stock(source: str | Path, *, model_type: str, **options: Any) -> VisionLanguageModel:
    """A LLaVA, LLaVA-NeXT, OpenVLA or Prismatic checkpoint.

    Args:
        source: hub id or folder.
        model_type: of its config.json.
        options: dtype, device, revision.

    Raises:
        ValueError: another option; or as the reader of its kind.
    """
    if unknown := sorted(options.keys() - {"dtype", "device", "revision"}):
        raise ValueError(
            f"{source} is a {model_type} checkpoint and is read with dtype, device and revision alone, got {', '.join(unknown)}: "
            "load it, save it with save_pretrained, and load that folder with all options"
        )
    return load_llava(source, **options) if model_type in PROCESSORS else load_prismatic(source, **options)
