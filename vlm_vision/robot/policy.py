"""The policy: from observations to chunks of actions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vlm_vision.robot.observation import Observation, PolicySpec


@dataclass(frozen=True)
class Actions:
    """Actions of a policy, with the time that each stage took.

    Args:
        values: (B, chunk, action_dim) float32 in the robot's own units, one row for each observation.
        seconds: what each stage took for the whole batch, by name: preprocess, encode, prefill, decode.
    """

    values: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)


class Policy(Protocol):
    """Simulators, servers and benchmarks take any object with these methods."""

    @property
    def spec(self) -> PolicySpec:
        """Its inputs and outputs."""
        ...

    def act(self, observations: Sequence[Observation]) -> Actions:
        """Actions for each observation; rows do not depend on each other.

        Raises:
            ValueError: an observation that `spec.check` refuses.
        """
        ...
