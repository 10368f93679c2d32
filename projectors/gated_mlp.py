"""A perceptron whose hidden layer is a product with a gate."""

from math import inf

from torch import Tensor, nn

from projectors.activation import activation as activation_called


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), Shazeer 2020 (arXiv:2002.05202).

    Args:
        activation: of the gate, a key of `projectors.activation.ACTIVATIONS`.
        bias: whether the first two linear maps have one.
        limit: most that the gate, and the other factor in size, may be before the activation; None for no limit.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        activation: str,
        *,
        bias: bool = False,
        limit: float | None = None,
    ):
        super().__init__()
        self.gate_proj = nn.Linear(in_dim, hidden_dim, bias=bias)
        self.up_proj = nn.Linear(in_dim, hidden_dim, bias=bias)
        self.down_proj = nn.Linear(hidden_dim, out_dim, bias=False)
        self.act, self.limit = activation_called(activation), limit

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.limit is not None:
            gate, up = gate.clamp(-inf, self.limit), up.clamp(-self.limit, self.limit)
        return self.down_proj(self.act(gate) * up)
