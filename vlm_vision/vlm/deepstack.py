"""Deep features of a tower in the first layers of a language model: DeepStack (Meng et al. 2024, arXiv:2406.04334).

Input embeddings of a model with deep features are wider: [words or image tokens | features of level 1 | level 2 | ...], zeros
for text. So they go wherever embeddings go: through generation, chunked prefill, packed rows. `DeepStack` takes them apart
before the language model, and adds level i to the output of its layer i, as Qwen3-VL does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder


def deep_levels(encoder: Encoder | FusedEncoder) -> int:
    """Number of deep features that an encoder gives at its tap."""
    if isinstance(encoder, FusedEncoder):
        return 0
    return len(encoder.config.mergers(encoder.tap.block(encoder.config.depth)))


def check_deepstack(encoder: Encoder | FusedEncoder, width: int, newline: bool) -> None:
    """Raise ValueError unless a language model of `width` can read the deep features of an encoder."""
    if not deep_levels(encoder):
        raise ValueError("this encoder has no deep features: attach it with deepstack=False")
    assert isinstance(encoder, Encoder)
    if encoder.config.deepstack_dim != width:
        raise ValueError(
            f"the encoder's deep features have {encoder.config.deepstack_dim} channels, but the language model takes {width}: "
            "attach with deepstack=False, or a language model of that width"
        )
    if newline:
        raise ValueError("deep features have no place in rows of tiles: use layout Whole or Native, or deepstack=False")


class DeepStack:
    """Hooks on the first layers of a language model; they do nothing outside `reading`.

    Args:
        language_model: its decoder has `layers` (or `h`), whose first output is the hidden states (B, T, width).
        levels: number of deep features.

    Raises:
        ValueError: a decoder without such layers, or with fewer than `levels`.
    """

    def __init__(self, language_model: Any, levels: int):
        decoder = language_model.get_decoder()
        layers = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
        if not isinstance(layers, nn.ModuleList) or len(layers) < levels:
            raise ValueError(
                f"deep features need a language model with at least {levels} decoder layers, got {type(language_model).__name__}: "
                "attach with deepstack=False"
            )
        self.levels = levels
        self._features: tuple[Tensor, ...] = ()
        self._recorded = False
        for i in range(levels):
            layers[i].register_forward_hook(partial(self._add, i))

    def widen(self, words: Tensor) -> Tensor:
        """(B, T, width) of text -> (B, T, width * (1 + levels)), zeros for the features."""
        return F.pad(words, (0, words.shape[-1] * self.levels))

    @contextmanager
    def reading(self, embeds: Tensor, width: int) -> Iterator[Tensor]:
        """The words and image tokens (B, T, width) of wide embeddings; inside, the language model reads their features."""
        words, *features = embeds.split(width, dim=-1)
        self._features, self._recorded = tuple(features), torch.is_grad_enabled()
        try:
            yield words
        finally:
            self._features = ()

    def _add(self, level: int, layer: nn.Module, inputs: Any, output: Any) -> Any:
        if (
            not self._features
        ):  # the language model alone; or a layer recomputed for the backward pass, which reads no sum
            return None
        if self._recorded and not torch.is_grad_enabled():
            raise ValueError(
                "deep features get no gradients from reentrant checkpointing: pass "
                'gradient_checkpointing_kwargs={"use_reentrant": False}'
            )
        hidden = output if isinstance(output, Tensor) else output[0]
        hidden = hidden + self._features[level].to(hidden)
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])
