"""An encoder without weights, which stands in a model while its tokens are read from a store."""

from typing import Any, TypeVar

import torch
from torch import nn

from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.tokens.training.match import towers_of

E = TypeVar("E", bound=Encoder | FusedEncoder)


def remove_weights(encoder: E) -> E:
    """Replace parameters and buffers by tensors of no elements that belong to no module, in place.

    The encoder still describes itself. A model around it can be loaded, moved, trained and kept in checkpoints, which hold
    nothing of the encoder; a call of the encoder raises ValueError.

    Returns:
        The encoder.
    """
    for module in encoder.modules():
        for held in (module._parameters, module._buffers):
            for name in [name for name, value in held.items() if value is not None]:
                module.__dict__[name] = torch.empty(0, dtype=held.pop(name).dtype)  # type: ignore[union-attr]
    for tower in towers_of(encoder):
        tower.model.register_forward_pre_hook(_refuse)
    return encoder.eval()


def has_weights(encoder: Encoder | FusedEncoder) -> bool:
    """Whether it computes; false after `remove_weights`."""
    return next(encoder.parameters(), None) is not None


def _refuse(module: nn.Module, inputs: Any) -> None:
    raise ValueError(
        "this encoder has no weights, as its tokens are read from a store: pass patch_tokens, or load the encoder"
    )
