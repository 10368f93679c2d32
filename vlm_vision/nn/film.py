"""Blocks that a vector steers: FiLM (Perez et al. 2018, arXiv:1709.07871), as OpenVLA-OFT lets the instruction steer its towers."""

from torch import Tensor, nn

from vlm_vision.nn.attention import Context
from vlm_vision.nn.blocks import Block, BlockConfig


class Film(nn.Module):
    """x (1 + scale(c)) + shift(c): (B, T, D), with c (B, C) the same for all tokens of an image."""

    def __init__(self, dim: int, condition_dim: int):
        super().__init__()
        self.scale = nn.Linear(condition_dim, dim)
        self.shift = nn.Linear(condition_dim, dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x * (1 + self.scale(condition)[:, None]) + self.shift(condition)[:, None]


class FilmBlock(Block):
    """A block with FiLM between attention and MLP; `Context.condition` must be there."""

    def __init__(self, config: BlockConfig, drop_path: float, condition_dim: int):
        super().__init__(config, drop_path)
        self.film = Film(config.embed_dim, condition_dim)

    @classmethod
    def wrap(cls, block: Block, config: BlockConfig, condition_dim: int) -> "FilmBlock":
        """The parts of a block, and FiLM that is zero at first, in the type and place of its weights."""
        made = cls(config, block.residual1.drop_path, condition_dim)
        like = next(block.parameters())
        made.film.to(like.device, like.dtype)
        for weight in made.film.parameters():
            nn.init.zeros_(weight)
        for name, part in block.named_children():
            setattr(made, name, part)
        return made.train(block.training)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        assert context.condition is not None
        x = self.film(self.attended(x, context), context.condition)
        return self.residual2(x, self.post2(self.mlp(self.norm2(x))), context)


def check_condition(condition: Tensor | None, film_dim: int, like: Tensor) -> Tensor | None:
    """The condition of a batch of as many images as `like`, in its type. Raises ValueError if it is not what is wanted."""
    if not film_dim:
        if condition is not None:
            raise ValueError("this encoder has no FiLM: leave condition= out")
        return None
    given = None if condition is None else tuple(condition.shape)
    if condition is None or given != (len(like), film_dim):
        raise ValueError(
            f"this encoder is steered by a vector (FiLM) and condition has shape {given}: expected {(len(like), film_dim)}, "
            "for OpenVLA-OFT the mean of the instruction's token embeddings"
        )
    return condition.to(like)
