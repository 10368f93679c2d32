"""One linear map."""

from torch import Tensor, nn

from projectors.projector import Grid, Projector, weight_flops


class LinearProjector(Projector):
    """One linear map, applied to each token: LLaVA's first version (Liu et al. 2023, arXiv:2304.08485), PaliGemma."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim)
        self.fc1 = nn.Linear(in_dim, out_dim)

    def flops(self, grid: Grid) -> int:
        return weight_flops(self, self.num_tokens(grid))

    def project(self, tokens: Tensor, grid: Grid) -> Tensor:
        return self.fc1(tokens)
