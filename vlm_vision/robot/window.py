"""A window: one moment of a recording with the actions from there on, a training sample of a policy."""

from dataclasses import dataclass

import numpy as np

from vlm_vision.robot.observation import Observation


@dataclass(frozen=True)
class Window:
    """
    Args:
        observation: of the moment.
        actions: (K, A), from the moment on, in the robot's own units; past the end the last one again.
        padded: (K,) bool, which are past the end of the episode.
        episode, step: which moment it is.
        data: name of the data, whose statistics apply; empty where there is one.
    """

    observation: Observation
    actions: np.ndarray
    padded: np.ndarray
    episode: int = 0
    step: int = 0
    data: str = ""
