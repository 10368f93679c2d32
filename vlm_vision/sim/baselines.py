"""Baselines of a policy's success: Meta-World's scripted experts, and random actions."""

import warnings
from collections.abc import Sequence

import numpy as np

from vlm_vision.robot.observation import Observation, PolicySpec
from vlm_vision.robot.policy import Actions
from vlm_vision.sim.metaworld import ACTION_NAMES, Simulation


class ScriptedExpert:
    """The scripted experts of Meta-World, as one policy. They know all positions, and read no image."""

    def __init__(self, cameras: Sequence[str] = ("corner4",)):
        from metaworld.policies import ENV_POLICY_MAP

        self._kinds = ENV_POLICY_MAP
        self.spec = PolicySpec(tuple(cameras), action_dim=4, action_names=ACTION_NAMES)

    def act(self, observations: Sequence[Observation]) -> Actions:
        """(B, 1, 4) in [-1, 1]. Raises ValueError for an observation that is not of Meta-World."""
        return Actions(np.stack([self._one(observation) for observation in observations])[:, None])

    def _one(self, observation: Observation) -> np.ndarray:
        if not isinstance(observation, Simulation):
            raise ValueError(
                "the observation is not of Meta-World: its experts work in no other simulator, use another policy"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an action will be clipped
            action = self._kinds[observation.task]().get_action(observation.hidden.copy())  # some write into it
        return np.clip(np.asarray(action, dtype=np.float32), -1, 1)


class RandomPolicy:
    """Random actions, uniform in [-1, 1], from one generator."""

    def __init__(self, spec: PolicySpec, seed: int = 0):
        self.spec = spec
        self._drawn = np.random.default_rng(seed)

    def act(self, observations: Sequence[Observation]) -> Actions:
        """(B, chunk, action_dim)."""
        shape = (len(observations), self.spec.chunk, self.spec.action_dim)
        return Actions(self._drawn.uniform(-1, 1, shape).astype(np.float32))
