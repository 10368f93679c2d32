"""A perceptron for each token."""

from torch import Tensor, nn

from projectors.activation import activation as activation_called
from projectors.projector import Grid, Projector, at_least_one, weight_flops


class MlpProjector(Projector):
    """Linear layers fc1, fc2, ..., an activation between them, as wide as the language model.

    Depth 2 with exact GELU is LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744).

    Args:
        depth: how many linear layers.
        activation: a key of `projectors.activation.ACTIVATIONS`.
        bias: whether the layers have one.
        norm: whether a layer norm of the tokens comes first (ViP-LLaVA, Cai et al. 2023, arXiv:2312.00784).
        eps: of that norm.

    Raises:
        ValueError: a depth below 1, or an unknown activation.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        depth: int = 2,
        activation: str = "gelu",
        bias: bool = True,
        norm: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__(in_dim, out_dim)
        at_least_one("mlp", depth=depth)
        self.depth, self.activation, self.bias, self.normed, self.eps = depth, activation, bias, norm, eps
        self.act = activation_called(activation)
        for i in range(1, depth + 1):
            self.add_module(f"fc{i}", nn.Linear(in_dim if i == 1 else out_dim, out_dim, bias=bias))
        self.norm = nn.LayerNorm(in_dim, eps=eps) if norm else nn.Identity()

    @property
    def options(self) -> dict:
        given = {"depth": self.depth, "activation": self.activation, "bias": self.bias}
        return given | {"norm": self.normed, "eps": self.eps}

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        first, *others, norm = self.children()
        tokens = first(norm(tokens))
        for layer in others:
            tokens = layer(self.act(tokens))
        return tokens
