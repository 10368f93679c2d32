"""The action head: a module that learns to predict actions from a prefix."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlm_vision.vla.heads.prefix import Prefix


class ActionHead(nn.Module):
    """Actions are normalized, (B, K, A): K time steps of A numbers. Steps where `padded` (B, K) is true do not count."""

    name: ClassVar[str]
    reads_state: ClassVar[bool] = False
    """True if the head reads the robot's state itself; for other heads the state is one more token of the prompt."""

    bounded: ClassVar[bool] = False
    """True if the head predicts numbers from -1 to 1 only."""

    random_inputs: ClassVar[tuple[str, ...]] = ()
    """Names of the random inputs that `draws` returns."""

    tail_ids: tuple[int, ...] = ()
    """Ids of tokens that follow the actions."""

    def __init__(self, *, action_dim: int, chunk: int, **options: Any):
        super().__init__()
        self.action_dim, self.chunk, self.options = action_dim, chunk, options

    def tail(self, like: Tensor) -> Tensor:
        """`tail_ids` for each row of ids (B, T): (B, E)."""
        words = [like.new_full((len(like), 1), word) for word in self.tail_ids]
        return torch.cat([like[:, :0], *words], dim=1)

    @staticmethod
    def draws(seeds: Sequence[int], chunk: int, action_dim: int) -> dict[str, Tensor]:
        """Random inputs of `loss`; each row is a function of its seed, so that a batch may be cut anywhere."""
        return {}

    def loss(self, prefix: Prefix, actions: Tensor, padded: Tensor, **draws: Tensor) -> Tensor:
        """Sum of the loss over `terms` terms, a scalar in float32."""
        raise NotImplementedError

    def terms(self, padded: Tensor) -> Tensor:
        """How many terms `loss` sums: by default one for each number of an action."""
        return (~padded).sum() * self.action_dim

    def prefill(self, prefix: Prefix) -> Any:
        """Output of the language model for the prompt, the input of `decode`."""
        raise NotImplementedError

    def decode(self, held: Any) -> Tensor:
        """Actions (B, K, A), float32."""
        raise NotImplementedError
