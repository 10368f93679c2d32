"""The interface of a simulated robot with one task."""

from typing import Protocol

import numpy as np

from vlm_vision.robot.observation import Observation

TRAINING_SEED = 0
"""First seed of recordings."""
EVALUATION_SEED = 10_000
"""First seed of closed loops, which recordings never reach."""


class Environment(Protocol):
    """One robot, one task. Recordings, closed loops and videos take any object with these methods.

    Steps and observations are two calls, because a simulator needs most of its time for images: a chunk of actions costs one
    observation.
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
        """Numbers of the robot's state; 0 for none."""
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
        """Start a new episode, which is a function of the seed and of the actions alone."""
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
        """The present observation."""
        ...

    def frame(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 of the first camera, for videos."""
        ...

    def close(self) -> None:
        """Free its resources; a second call does nothing."""
        ...
