"""The embedded prompt that an action head reads, and attention masks for tokens that follow it.

Shapes: B batch, T tokens of the prompt, Q tokens of the head, W width of the language model.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_vision.vlm.model import VisionLanguageModel


@dataclass(frozen=True)
class Prefix:
    """A prompt with its images, embedded; rows are padded on the left, so that all end at the same place."""

    vlm: VisionLanguageModel
    """Model without peft's wrapper; its layers may have adapters."""
    embeds: Tensor
    """Embeddings (B, T, W)."""
    mask: Tensor
    """Mask (B, T) int64, 0 for padding."""
    state: Tensor | None = None
    """Normalized state (B, S), for heads that read it themselves."""

    def extended_with(self, embeds: Tensor) -> "Prefix":
        """The same with (B, Q, W) after it."""
        mask = torch.cat([self.mask, self.mask.new_ones(embeds.shape[:2])], dim=1)
        return Prefix(self.vlm, torch.cat([self.embeds, embeds.to(self.embeds)], dim=1), mask, self.state)

    @property
    def position_ids(self) -> Tensor:
        """(B, T), counted from each row's first token."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    def hidden(self, seen: Tensor) -> Tensor:
        """Hidden states (B, T, W) of the language model, final norm included; `seen` (B, T, T) bool is the
        attention mask."""
        decoder: Any = self.vlm.get_decoder()
        given = (
            {"position_ids": self.position_ids}
            if "position_ids" in inspect.signature(decoder.forward).parameters
            else {}
        )
        mask = additive(seen, self.embeds.dtype)
        return decoder(inputs_embeds=self.embeds, attention_mask=mask, use_cache=False, **given).last_hidden_state


def output_cache(output: Any) -> Any:
    """The cache in what a language model returned, None if it kept none; transformers renamed it in 5.24."""
    return output["cache"] if "cache" in output else output.get("past_key_values")


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, Q, K) bool -> (B, 1, Q, K), 0 where seen and the lowest number elsewhere; finite, so that rows that see nothing
    stay finite."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def open_end(mask: Tensor, length: int) -> Tensor:
    """Attention mask (B, T, T) bool: the last `length` tokens see all tokens, the others see those before them.

    Args:
        mask: (B, T), 0 where a row is padded.
    """
    total = mask.shape[1]
    seen = torch.ones(total, total, dtype=torch.bool, device=mask.device).tril()
    seen[total - length :].fill_(True)
    return seen[None] & mask.bool()[:, None, :]
