"""Run folders of OpenVLA-OFT's fine-tuning: a merged OpenVLA folder, or an adapter of LoRA beside the base's name; with FiLM
the towers in a file of their own.

`lora_adapter/` alone: the base's weights with it. `vision_backbone--<step>_checkpoint.pt`: towers with FiLM and LoRA that is not
merged; it stands above the towers of model.safetensors, into which OFT's merge cannot put them (the names differ under FiLM), so
that these are the base's.
"""

from pathlib import Path

from vlm_vision.checkpoints.hub import resolve
from vlm_vision.checkpoints.openvla import low_rank
from vlm_vision.checkpoints.openvla.low_rank import MergedLowRank
from vlm_vision.checkpoints.towers import WeightSource
from vlm_vision.checkpoints.weights import WeightFiles

ADAPTER = "lora_adapter"


def base(folder: Path) -> Path:
    """The folder with config.json and whole weights: itself, or the one that its adapter was trained on."""
    adapter = folder / ADAPTER
    if (folder / "config.json").is_file() or not (adapter / low_rank.CONFIG).is_file():
        return folder
    name, _ = low_rank.described(adapter)
    try:
        return resolve(name, None)
    except ValueError as error:
        raise ValueError(f"{folder} is an adapter of {name}, which is not to be had: {error}") from None


def weights(folder: Path) -> WeightSource:
    """All weights, those of the adapter added where they are not merged."""
    whole = base(folder)
    return WeightFiles(whole) if whole == folder else low_rank.on_base(WeightFiles(whole), folder / ADAPTER)


def tower_weights(folder: Path) -> WeightSource | None:
    """Towers with FiLM in a file of their own; None if there is none.

    Raises:
        ValueError: several of them.
    """
    files = sorted(folder.glob("vision_backbone--*_checkpoint.pt"))
    if len(files) > 1:
        raise ValueError(
            f"{folder} holds {', '.join(file.name for file in files)}: leave the one that belongs to the other files"
        )
    if not files:
        return None
    stored = WeightFiles(files[0])
    adapter = folder / ADAPTER
    scale = low_rank.described(adapter)[1] if (adapter / low_rank.CONFIG).is_file() else None
    return MergedLowRank(stored, stored, scale=scale, source=str(files[0]))
