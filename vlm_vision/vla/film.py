"""FiLM: the instruction changes what the encoder sees (Perez et al. 2017, arXiv:1709.07871; OpenVLA-OFT for ALOHA)."""

from typing import Any

import torch
from torch import Tensor, nn

from vlm_vision.encoder import Encoder


class Film(nn.Module):
    """x (1 + scale) + shift, by channel, between attention and MLP of every block that the tap reaches, of every tower.

    Scale and shift are linear in the mean of the instruction's word embeddings, and zero at first.
    """

    def __init__(self, width: int, encoder: nn.Module):
        super().__init__()
        self.condition: Tensor | None = None
        self.scales, self.shifts = nn.ModuleList(), nn.ModuleList()
        for tower in (module for module in encoder.modules() if isinstance(module, Encoder)):
            idle = {id(part) for part in tower.model.unreached(tower.tap)}
            for block in tower.model.blocks:
                if id(block) not in idle:
                    place = len(self.scales)
                    for part in (self.scales, self.shifts):
                        part.append(zero_linear(width, tower.config.embed_dim))
                    residual: Any = block.residual1
                    residual.register_forward_hook(self._at(place))

    def _at(self, place: int):
        def changed(module: nn.Module, inputs: Any, x: Tensor) -> Tensor | None:
            return None if self.condition is None else self(x, place)

        return changed

    def forward(self, x: Tensor, place: int) -> Tensor:
        """Tokens (B, T, D) of the block at `place`. Raises ValueError where pictures are packed into one row."""
        told = self.condition
        assert told is not None
        if len(x) % len(told):
            raise ValueError("FiLM needs one row for each picture: attach the encoder with Whole(), not with Native")
        told = told.repeat_interleave(len(x) // len(told), dim=0)[:, None]
        return x * (1 + self.scales[place](told)).to(x.dtype) + self.shifts[place](told).to(x.dtype)


def zero_linear(width: int, out: int) -> nn.Linear:
    """A linear layer that gives zero."""
    linear = nn.Linear(width, out)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    return linear
