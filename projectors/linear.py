"""One linear map."""

from torch import Tensor, nn

from projectors.projector import Grid, Projector, weight_flops


class LinearProjector(Projector):
    """One linear map, applied to each token: LLaVA's first version (Liu et al. 2023, arXiv:2304.08485), PaliGemma.

    Args:
        out_norm: a layer norm follows (GIT, Wang et al. 2022, arXiv:2205.14100).
        eps: of that norm.
    """

    def __init__(self, in_dim: int, out_dim: int, *, out_norm: bool = False, eps: float = 1e-5):
        super().__init__(in_dim, out_dim)
        self.fc1 = nn.Linear(in_dim, out_dim)
        self.out_norm, self.eps = out_norm, eps
        self.norm = nn.LayerNorm(out_dim, eps=eps) if out_norm else nn.Identity()

    @property
    def options(self) -> dict:
        return {"out_norm": self.out_norm, "eps": self.eps}

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.norm(self.fc1(tokens))
