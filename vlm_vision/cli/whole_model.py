"""The `VisionLanguageModel` of a command, and checks of its numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_vision.vlm.model import VisionLanguageModel


def whole_model(source: str, device: str) -> "VisionLanguageModel":
    """The `VisionLanguageModel` of a folder or hub id, on a device."""
    from transformers import PreTrainedConfig

    from vlm_vision.load_encoder import known_device
    from vlm_vision.vlm.config import STOCK_TYPES, VisionLanguageConfig
    from vlm_vision.vlm.model import VisionLanguageModel

    folder = Path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: pass the folder that VisionLanguageModel.save_pretrained wrote")
    if not folder.exists() and source.count("/") != 1:
        raise ValueError(f"there is no folder {source}, and it is no hub id of the form owner/name")
    where, kind = known_device(device), PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    if kind not in (VisionLanguageConfig.model_type, *STOCK_TYPES):
        raise ValueError(
            f"{source} holds a {kind} model, expected one saved by VisionLanguageModel, LLaVA or Prismatic"
        )
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
