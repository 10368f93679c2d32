"""All numbers of a chunk in one pass of the language model, by regression (OpenVLA-OFT, Kim et al. 2025, arXiv:2502.19645)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vlm_vision.vla.heads.base import ActionHead
from vlm_vision.vla.heads.prefix import Prefix, open_end

Style = Literal["slots", "openvla_oft"]


class ParallelHead(ActionHead):
    """A slot for each number of the chunk follows the prompt; slots see all tokens and each other.

    The hidden states of the slots of one time step, side by side, go through a residual MLP to its numbers; the loss is L1.

    Args:
        width: of the language model.
        hidden_dim: of the MLP; 0 for `width`.
        blocks: residual blocks of the MLP.
        style: "slots": they begin as learned vectors, and tokens of the prompt keep the order that the language model
            learned. "openvla_oft": as the authors' own code, for its checkpoints: slots begin as zeros that only their
            position tells apart, the end token follows, all tokens see each other (openvla-oft, issue 27), and each
            number is read one token early, where the language model would predict it.
        end_id: the end token of openvla_oft; 2 for Llama 2.
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
        style: Style = "slots",
        end_id: int = 2,
    ):
        options = dict(hidden_dim=hidden_dim, blocks=blocks, style=style, end_id=end_id)
        super().__init__(action_dim=action_dim, chunk=chunk, **options)
        if style not in get_args(Style):
            raise ValueError(f"style is {style!r}: expected one of {', '.join(get_args(Style))}")
        hidden = hidden_dim or width
        self.tail_ids = () if style == "slots" else (end_id,)
        self.queries = nn.Parameter(torch.randn(chunk * action_dim, width) * 0.02) if style == "slots" else None
        self.norm1, self.fc1 = nn.LayerNorm(action_dim * width), nn.Linear(action_dim * width, hidden)
        self.blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(blocks))
        self.norm2, self.fc2 = nn.LayerNorm(hidden), nn.Linear(hidden, action_dim)

    def loss(self, prefix: Prefix, actions: Tensor, padded: Tensor) -> Tensor:
        """Sum of |predicted - actions|."""
        error = (self.decode(self.prefill(prefix)) - actions).abs()
        return error.masked_fill(padded[..., None], 0).sum()

    def prefill(self, prefix: Prefix) -> Tensor:
        """Hidden states that the numbers are read from, (B, K * A, W)."""
        count, width = self.chunk * self.action_dim, prefix.embeds.shape[-1]
        if self.queries is not None:
            whole = prefix.extended_with(self.queries.expand(len(prefix.embeds), count, width))
            return whole.hidden(open_end(whole.mask, count))[:, -count:]
        end = prefix.vlm.get_input_embeddings()(self.tail(prefix.mask))
        whole = prefix.extended_with(torch.cat([end.new_zeros(len(end), count, width), end], dim=1))
        everything = open_end(whole.mask, whole.mask.shape[1])
        return whole.hidden(everything)[:, -count - 2 : -2]

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
