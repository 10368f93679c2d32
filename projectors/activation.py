"""Activations by name."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, sigmoid

from projectors.names import did_you_mean


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
    return x * sigmoid(1.702 * x)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2. So et al. 2021 (arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": relu_squared,
    "silu": F.silu,
    "quick_gelu": quick_gelu,
}
"""Name -> function."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function called `name`. Raises ValueError if none is."""
    if name not in ACTIVATIONS:
        hint = did_you_mean(name, ACTIVATIONS)
        raise ValueError(f"no activation is called {name!r}, expected one of {', '.join(ACTIVATIONS)}{hint}")
    return ACTIVATIONS[name]
