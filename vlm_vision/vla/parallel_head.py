"""All numbers of a chunk in one pass of the language model, by regression (OpenVLA-OFT, Kim et al. 2025, arXiv:2502.19645)."""

import torch
from torch import Tensor, nn

from vlm_vision.vla.head import ActionHead
from vlm_vision.vla.prefix import Prefix, PromptOrder, open_end


class ParallelHead(ActionHead):
    """A slot for each number of the chunk follows the prompt; slots see all tokens and each other.

    The hidden states of the slots of one time step, side by side, go through a residual MLP to its numbers; the loss is L1.

    Args:
        width: of the language model.
        hidden_dim: of the MLP; 0 for `width`.
        blocks: residual blocks of the MLP.
        prompt: "causal" keeps the order that the language model learned; "full" lets tokens of the prompt see everything,
            the slots too, as the authors' own code does (openvla-oft, issue 27).
        learned_slots: whether slots begin as learned vectors, or as zeros that only their position tells apart, as in OFT.
    """

    name = "parallel"

    def __init__(
        self,
        *,
        action_dim: int,
        chunk: int,
        width: int,
        hidden_dim: int = 0,
        blocks: int = 2,
        prompt: PromptOrder = "causal",
        learned_slots: bool = True,
    ):
        options = dict(hidden_dim=hidden_dim, blocks=blocks, prompt=prompt, learned_slots=learned_slots)
        super().__init__(action_dim=action_dim, chunk=chunk, width=width, **options)
        if prompt not in ("causal", "full"):
            raise ValueError(f"prompt is {prompt!r}: expected causal or full")
        hidden = hidden_dim or width
        self.prompt: PromptOrder = prompt
        self.queries = nn.Parameter(torch.randn(chunk * action_dim, width) * 0.02) if learned_slots else None
        self.norm1, self.fc1 = nn.LayerNorm(action_dim * width), nn.Linear(action_dim * width, hidden)
        self.blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(blocks))
        self.norm2, self.fc2 = nn.LayerNorm(hidden), nn.Linear(hidden, action_dim)

    def loss(self, prefix: Prefix, actions: Tensor, padded: Tensor) -> Tensor:
        """Sum of |predicted - actions|."""
        error = (self.decode(self.prefill(prefix)) - actions).abs()
        return error.masked_fill(padded[..., None], 0).sum()

    def prefill(self, prefix: Prefix) -> Tensor:
        """Hidden states of the slots, (B, K * A, W)."""
        count, width = self.chunk * self.action_dim, prefix.embeds.shape[-1]
        slots = prefix.embeds.new_zeros(count, width) if self.queries is None else self.queries
        whole = prefix.followed_by(slots.expand(len(prefix.embeds), count, width))
        return whole.hidden(open_end(whole.mask, count, self.prompt))[:, -count:]

    def decode(self, held: Tensor) -> Tensor:
        hidden = held.unflatten(1, (self.chunk, self.action_dim)).flatten(2).to(self.fc1.weight.dtype)
        hidden = self.fc1(self.norm1(hidden)).relu()
        for block in self.blocks:
            hidden = block(hidden)
        return self.fc2(self.norm2(hidden)).float()


class ResidualBlock(nn.Module):
    """x + relu(linear(norm(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(self.norm(x)).relu()
