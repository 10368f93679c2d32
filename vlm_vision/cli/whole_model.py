"""The `VisionLanguageModel` of a command, and checks of its numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_vision.vlm.model import VisionLanguageModel


def whole_model(source: str, device: str) -> "VisionLanguageModel":
    """The `VisionLanguageModel` of a folder or hub id, on a device."""
    from vlm_vision.load_encoder import known_device
    from vlm_vision.vlm.model import VisionLanguageModel

    where = known_device(device)
    return VisionLanguageModel.from_pretrained(source).to(where)


def is_ours(source: str) -> bool:
    """Whether a source is a folder that `VisionLanguageModel.save_pretrained` wrote."""
    from vlm_vision.files import read_json
    from vlm_vision.vlm.config import VisionLanguageConfig

    config = Path(source) / "config.json"
    return config.is_file() and read_json(config).get("model_type") == VisionLanguageConfig.model_type


def at_least_one(name: str, value: int) -> None:
    """Raise ValueError for a number below 1."""
    if value < 1:
        raise ValueError(f"{name} is {value}: expected at least 1")
