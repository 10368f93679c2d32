"""Actions as words of the language model, one after the other (RT-2, Brohan et al. 2023; OpenVLA, Kim et al. 2024)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_vision.robot.action_tokens import ActionTokens
from vlm_vision.vla.heads.base import ActionHead
from vlm_vision.vla.heads.prefix import Prefix, output_cache

IGNORED = -100


@dataclass(frozen=True)
class TokenCache:
    """A prompt that the language model has read."""

    prefix: Prefix
    cache: Any
    logits: Tensor
    """Logits (B, words) of the first number."""


class TokenHead(ActionHead):
    """The numbers of an action, then those of the next one, each a token. It has no weights of its own.

    Args:
        vocab_size: of the tokenizer, whose last words become the bins; for Llama 2 with OpenVLA 32000.
        end_id: token after the last number, learned but not waited for; None for none.
        bins: see `ActionTokens`.
    """

    name = "tokens"
    bounded = True

    def __init__(self, *, action_dim: int, chunk: int, vocab_size: int, end_id: int | None = None, bins: int = 256):
        super().__init__(action_dim=action_dim, chunk=chunk, vocab_size=vocab_size, end_id=end_id, bins=bins)
        self.tokens, self.end_id = ActionTokens(vocab_size, bins), end_id

    def loss(self, prefix: Prefix, actions: Tensor, padded: Tensor) -> Tensor:
        """Cross entropy of the tokens and of the end."""
        ids = self.tokens.encode(actions).flatten(1)
        labels = ids.masked_fill(padded.repeat_interleave(self.action_dim, dim=1), IGNORED)
        if self.end_id is not None:
            end = ids.new_full((len(ids), 1), self.end_id)
            ids, labels = torch.cat([ids, end], dim=1), torch.cat([labels, end], dim=1)
        whole = prefix.extended_with(prefix.vlm.get_input_embeddings()(ids[:, :-1]))
        count = ids.shape[1]
        out = prefix.vlm(inputs_embeds=whole.embeds, attention_mask=whole.mask, logits_to_keep=count, use_cache=False)
        logits = out.logits[:, -count:].flatten(0, 1).float()
        return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def terms(self, padded: Tensor) -> Tensor:
        return super().terms(padded) + (len(padded) if self.end_id is not None else 0)

    def prefill(self, prefix: Prefix) -> TokenCache:
        out = prefix.vlm(inputs_embeds=prefix.embeds, attention_mask=prefix.mask, logits_to_keep=1, use_cache=True)
        return TokenCache(prefix, output_cache(out), out.logits[:, -1])

    def decode(self, held: TokenCache) -> Tensor:
        """The likeliest word each time, as OpenVLA; one that is no action decodes as the nearest bin."""
        vlm, mask, cache = held.prefix.vlm, held.prefix.mask, held.cache
        ids = [held.logits.argmax(-1)]
        while len(ids) < self.chunk * self.action_dim:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            word = vlm.get_input_embeddings()(ids[-1][:, None])
            out = vlm(inputs_embeds=word, attention_mask=mask, past_key_values=cache, use_cache=True)
            ids.append(out.logits[:, -1].argmax(-1))
        return self.tokens.decode(torch.stack(ids, dim=1)).unflatten(1, (self.chunk, self.action_dim))
