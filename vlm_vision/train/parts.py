"""Which part of a `VisionLanguageModel` trains, and how: frozen, LoRA adapters, or all its weights."""

from typing import Literal

from torch import nn

from vlm_vision.encoder import Encoder
from vlm_vision.vlm.model import VisionLanguageModel

How = Literal["frozen", "lora", "full"]


def set_trainable(
    model: VisionLanguageModel,
    *,
    vision: How,
    projector: Literal["frozen", "full"],
    language: How,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.0,
) -> nn.Module:
    """Freeze and unfreeze the parts, and put LoRA adapters on every linear layer of those that ask for them.

    What the encoder's tap does not reach (blocks past it, pooling, heads) stays frozen whatever is asked.

    Returns:
        The model to train: the model itself, or the peft wrapper around it. `merged` undoes the wrapping.
    """
    parts = {"encoder": vision, "projector": projector, "language_model": language}
    adapted = [name for name, how in parts.items() if how == "lora"]
    wrapped: nn.Module = model
    if adapted:
        from peft import LoraConfig, get_peft_model

        idle = {id(module) for part in _idle(model) for module in part.modules()}
        targets = [name for part in adapted for name in _linear_layers(model, part, without=idle)]
        lora = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=targets)
        wrapped = get_peft_model(model, lora)
    for name, how in parts.items():
        if how != "lora":
            getattr(model, name).requires_grad_(how == "full")
    for part in _idle(model):
        part.requires_grad_(False)
    for tower in _towers(model):
        if tower.model.mask_token is not None:
            tower.model.mask_token.requires_grad_(False)
    return wrapped


def merged(wrapped: nn.Module) -> VisionLanguageModel:
    """The plain model, adapters merged into its weights."""
    return wrapped if isinstance(wrapped, VisionLanguageModel) else wrapped.merge_and_unload()  # type: ignore[operator]


def trainable_table(model: VisionLanguageModel) -> str:
    """One line for each part: how many of its parameters train."""
    lines = []
    for name in ("encoder", "projector", "language_model"):
        weights = list(getattr(model, name).parameters())
        total, trains = sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)
        lines.append(f"{name:15} {trains:>13,} of {total:>13,} parameters train")
    return "\n".join(lines)


def _towers(model: VisionLanguageModel) -> list[Encoder]:
    return [module for module in model.encoder.modules() if isinstance(module, Encoder)]


def _idle(model: VisionLanguageModel) -> list[nn.Module]:
    """Modules of the encoder that its image tokens do not come from."""
    return [part for tower in _towers(model) for part in tower.model.unreached(tower.tap)]


def _linear_layers(model: VisionLanguageModel, part: str, *, without: set[int]) -> list[str]:
    """Full names of the linear layers of a part, but those in `without` and the output embedding."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    output = model.get_output_embeddings()
    return [
        f"{part}.{name}"
        for name, module in getattr(model, part).named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and id(module) not in without
    ]
