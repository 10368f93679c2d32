"""`TextTower`, the result of every reader of a text part, and its model."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_vision.checkpoints.hf.bert_text import BertText, BertTextConfig
from vlm_vision.checkpoints.keys import Key
from vlm_vision.checkpoints.towers import WeightSource, read_state_dict
from vlm_vision.nn.text import TextConfig, TextTransformer, sincos_1d
from vlm_vision.preprocess.tokenizer import TokenizerRules


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """One text tower in a checkpoint: what to build, its weights, and the scale and bias of a pair."""

    source: str
    """Name of the tower in an error."""
    format: Literal["hf", "open_clip", "big_vision"]
    config: TextConfig | BertTextConfig
    keys: list[Key]
    weights: WeightSource
    rules: TokenizerRules
    """Rules of the tokenizer."""
    logit_scale: Tensor | None = None
    """Logarithm of the scale of the logits, a scalar; None for a text tower alone."""
    logit_bias: Tensor | None = None
    """Scalar that is added to the logits; None for none (CLIP)."""


def build(tower: TextTower, *, dtype: torch.dtype, device: torch.device) -> TextTransformer | BertText:
    """The model with its weights, each read once, to where it stays.

    Raises:
        ValueError: a weight that is missing, unused, or of another shape than the configuration makes it.
    """
    with torch.device("meta"):
        model = TextTransformer(tower.config) if isinstance(tower.config, TextConfig) else BertText(tower.config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    state = read_state_dict(tower.keys, shapes, tower.weights, source=tower.source, dtype=dtype, device=device)
    model.load_state_dict(state, strict=True, assign=True)
    if isinstance(model, TextTransformer) and model.config.position == "sincos":  # computed, never stored
        table = sincos_1d(model.config.context_length, model.config.embed_dim)
        model.position = table.to(device=device, dtype=dtype)
    return model


def scalar(weights: WeightSource, name: str) -> Tensor | None:
    """The one number called `name`, stored as () or (1,), if it is there. Raises ValueError for several numbers."""
    if name not in weights.shapes:
        return None
    value = weights.get(name)
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {list(value.shape)}, expected one number")
    return value.reshape(())
