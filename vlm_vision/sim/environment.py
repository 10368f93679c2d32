"""What a simulated robot at one task is, whatever simulates it."""

from typing import Protocol

import numpy as np

from vlm_vision.robot.observation import Observation

TRAINING_SEED = 0
"""Recordings take seeds from here, upwards."""
EVALUATION_SEED = 10_000
"""Closed loops take seeds from here, upwards, and recordings never reach it."""


class Environment(Protocol):
    """One robot, one task. Recordings, closed loops and videos take anything that is like this.

    Stepping and looking are two calls, because images are what a simulator spends its time on: a chunk of actions that is
    executed without looking costs one look.
    """

    @property
    def name(self) -> str:
        """Of the task."""
        ...

    @property
    def instruction(self) -> str:
        """The task in words."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the images of an observation."""
        ...

    @property
    def state_dim(self) -> int:
        """Numbers that the robot tells of itself; 0 for none."""
        ...

    @property
    def action_dim(self) -> int:
        """Numbers of an action."""
        ...

    @property
    def fps(self) -> float:
        """Steps in a second of the robot's time."""
        ...

    def reset(self, seed: int) -> Observation:
        """Begin anew. What follows is a function of the seed and of the actions, whatever came before."""
        ...

    def step(self, action: np.ndarray) -> tuple[bool, bool]:
        """Do one action (action_dim,), in the robot's own units; what is out of range is clipped.

        Returns:
            Whether the task has been done at any step since the reset; and whether the episode is over, because it was
            done or because time is up.

        Raises:
            ValueError: another shape, or numbers that are not finite.
        """
        ...

    def observe(self) -> Observation:
        """Look, now."""
        ...

    def frame(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 for people to watch, of the first camera."""
        ...

    def close(self) -> None:
        """Give back what it holds. Twice is as once."""
        ...
