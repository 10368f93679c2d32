"""A robot's state as one token of the language model."""

import torch.nn.functional as F
from torch import Tensor, nn


class StateToken(nn.Module):
    """(B, S), normalized -> (B, W): linear, GELU, linear, the proprio projector of OpenVLA-OFT."""

    def __init__(self, state_dim: int, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(state_dim, width), nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(state.to(self.fc1.weight.dtype))))
