"""Reader of public checkpoints of other projects, for `VisionLanguageModel.from_pretrained`."""

from pathlib import Path
from typing import Any

from vlm_vision.vlm.formats.common import Parts
from vlm_vision.vlm.formats.llava import PROCESSORS, read_llava
from vlm_vision.vlm.formats.prismatic import read_prismatic


def read_parts(source: str | Path, *, model_type: str, **options: Any) -> Parts:
    """The parts of a LLaVA, LLaVA-NeXT, OpenVLA or Prismatic checkpoint.

    Args:
        source: hub id or folder.
        model_type: of its config.json.
        options: dtype, device, revision.

    Raises:
        ValueError: another option; or as the reader of its kind.
    """
    if unknown := sorted(options.keys() - {"dtype", "device", "revision"}):
        raise ValueError(
            f"{source} is a {model_type} checkpoint, which takes dtype, device and revision alone, got {', '.join(unknown)}: "
            "load it, save it with save_pretrained, and load that folder with all options"
        )
    return read_llava(source, **options) if model_type in PROCESSORS else read_prismatic(source, **options)
