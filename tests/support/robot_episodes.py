"""Small recorded tries for tests of robot data."""

import numpy as np

from vlm_vision.robot.episode import Episode

LENGTHS = (5, 9, 7, 1)


def ramps(side: int, length: int, seed: int) -> np.ndarray:
    """Images that move, uint8 (T, side, side, 3); no two moments are alike, and a video keeps them well."""
    rows, columns = np.mgrid[:side, :side]
    steps = np.arange(length)[:, None, None]
    red = (columns + 8 * steps) * 255 // (side + 8 * length)
    green = np.broadcast_to((rows * 2 + seed * 40) % 256, red.shape)
    blue = np.broadcast_to(steps * 20 % 256, red.shape)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def some_episodes(
    count: int = 4, *, top: int = 64, wrist: int = 64, states: bool = True, success: bool = True
) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            f"task {number % 2}",
            {"top": ramps(top, length, number), "wrist": ramps(wrist, length, number + 3)},
            rng.normal(size=(length, 4)),
            rng.normal(size=(length, 3)) if states else None,
            success=number % 2 == 0 if success else None,
        )
        for number, length in enumerate((LENGTHS * count)[:count])
    ]
