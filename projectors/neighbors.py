"""Squares of neighboring tokens."""

from einops import rearrange
from torch import Tensor

from projectors.projector import Grid


def square_grid(projector: str, grid: Grid, *, side: int, option: str) -> Grid:
    """Rows and columns of squares of side x side.

    Args:
        projector, option: names of the projector and of its option for the side, for the error message.

    Raises:
        ValueError: a grid that the side does not divide.
    """
    if grid[0] % side or grid[1] % side:
        raise ValueError(
            f"{projector} with {option} {side} needs a grid of multiples of {side}, got {grid[0]}x{grid[1]}: "
            f"choose another image size or another {option}"
        )
    return grid[0] // side, grid[1] // side


def rounded_up_grid(grid: Grid, side: int) -> Grid:
    """Rows and columns of squares of side x side, where those at the far edges may be smaller."""
    return -(-grid[0] // side), -(-grid[1] // side)


def side_by_side(tokens: Tensor, squares: Grid, side: int) -> Tensor:
    """(B, N, D) -> (B, N / side^2, side^2 * D): the tokens of each square, row by row, in the channels of one."""
    return rearrange(tokens, "b (h p w q) d -> b (h w) (p q d)", h=squares[0], p=side, w=squares[1], q=side)
