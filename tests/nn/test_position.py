"""Positions against their formulas written out by hand."""

import math

import pytest

from vlm_vision.nn.position import sincos_2d


@pytest.mark.parametrize("grid", [(2, 3), (3, 2)])
def test_sincos_holds_the_column_before_the_row(grid: tuple[int, int]) -> None:
    """MAE's get_2d_sincos_pos_embed: [sin, cos] of the column in the first half of the width, of the row in the second."""
    dim = 8
    table = sincos_2d(grid, dim)
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (i / (dim / 4)) for i in range(dim // 4)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            assert table[row * grid[1] + column].tolist() == pytest.approx(expected, abs=1e-6)
