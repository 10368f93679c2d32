"""Run folders of OpenVLA-OFT's fine-tuning: a merged OpenVLA folder, or a LoRA adapter with the name of its base; with FiLM
the towers are in a separate file.

`lora_adapter/` alone: the base's weights with it. `vision_backbone--<step>_checkpoint.pt`: towers with FiLM and LoRA that is not
merged; it overrides the towers of model.safetensors, which are the base's: OFT's merge cannot write them, because the names
differ under FiLM.
"""

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.hub import resolve
from vlm_vision.checkpoints.openvla import low_rank
from vlm_vision.checkpoints.openvla.low_rank import MergedLowRank
from vlm_vision.checkpoints.towers import WeightSource

ADAPTER = "lora_adapter"


def _adapter(run: Checkpoint) -> Checkpoint | None:
    adapter = run.other(run.path / ADAPTER)
    return adapter if adapter.has(low_rank.CONFIG) else None


def base(run: Checkpoint) -> Checkpoint:
    """The folder with config.json and whole weights: itself, or the one that its adapter was trained on."""
    adapter = _adapter(run)
    if run.has("config.json") or adapter is None:
        return run
    name, _ = low_rank.described(adapter)
    try:
        return run.other(resolve(name, None))
    except ValueError as error:
        raise ValueError(f"{run} is an adapter of {name}, which cannot be loaded: {error}") from None


def weights(run: Checkpoint) -> WeightSource:
    """All weights, those of the adapter added where they are not merged."""
    whole, adapter = base(run), _adapter(run)
    return whole.weights if whole is run or adapter is None else low_rank.on_base(whole.weights, adapter)


def tower_weights(run: Checkpoint) -> WeightSource | None:
    """Towers with FiLM in a separate file; None if there is none.

    Raises:
        ValueError: several of them.
    """
    names = sorted(file.name for file in run.path.glob("vision_backbone--*_checkpoint.pt"))
    if len(names) > 1:
        raise ValueError(f"{run} holds {', '.join(names)}: keep only the one that belongs to the other files")
    if not names:
        return None
    stored, adapter = run.weights_in(names[0]), _adapter(run)
    scale = None if adapter is None else low_rank.described(adapter)[1]
    return MergedLowRank(stored, stored, scale=scale, source=str(run.path / names[0]))
