"""Meta-World's fifty tasks (Yu et al. 2019; v3) of one Sawyer arm: images, position of the gripper, instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from vlm_vision.robot.observation import Observation
from vlm_vision.robot.statistics import join_names
from vlm_vision.sim.instructions import INSTRUCTIONS
from vlm_vision.sim.rendering import Renderer

if TYPE_CHECKING:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

VIEWS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
"""Cameras of the scene."""
UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
"""Cameras that are mounted upside down; their images are rotated."""
ACTION_NAMES = ("x", "y", "z", "gripper")
STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper_opening")
HORIZON = 500
"""Steps of an episode in Meta-World."""


@dataclass(frozen=True)
class Simulation(Observation):
    """An observation, with the simulator's state for scripted experts.

    Args:
        task: Meta-World's name of it.
        hidden: its (39,) numbers, of the gripper, the objects and the goal.
    """

    task: str = ""
    hidden: np.ndarray = field(default_factory=lambda: np.zeros(39))


class MetaWorld:
    """One task, an `Environment`.

    The goal is seen as in the multi-task benchmarks, a colored ball in the image; the state never holds it, nor where an
    object is. A seed places objects and goal, as `env.seed` does. Success latches, and ends an episode.

    Args:
        name: of the task, as reach-v3.
        cameras: names of images -> views of the scene; a sequence of views names each after itself. corner4 shows objects
            twice as large as corner2; where LeRobot says corner2, it has moved that camera to the place of corner4.
        size: side of the images, in pixels.
        horizon: steps after which an episode is over.

    Raises:
        ValueError: a task or view that is not known, a size or horizon out of range, or Meta-World is not installed.
        OSError: nothing to draw with.
    """

    action_dim = 4
    state_dim = 4

    def __init__(
        self,
        name: str,
        *,
        cameras: Mapping[str, str] | Sequence[str] = ("corner4",),
        size: int = 128,
        horizon: int = HORIZON,
    ):
        self._views = dict(cameras) if isinstance(cameras, Mapping) else {view: view for view in cameras}
        if name not in INSTRUCTIONS:
            raise ValueError(f"task {name!r} is not known: expected one of {', '.join(INSTRUCTIONS)}")
        unknown = set(self._views.values()) - set(VIEWS)
        if unknown or not self._views:
            problem = f"views {join_names(unknown)} are not known" if self._views else "there are no cameras"
            raise ValueError(f"{problem}: choose from {', '.join(VIEWS)}")
        if size < 1 or not 1 <= horizon <= HORIZON:
            raise ValueError(f"size is {size}, horizon {horizon}: expected 1 pixel or more, and 1 to {HORIZON} steps")
        self.name, self.instruction, self.cameras = name, INSTRUCTIONS[name], tuple(self._views)
        self._size, self._horizon = size, horizon
        self._simulated = _simulation(name)
        self.fps = 1 / self._simulated.dt
        self._renderer: Renderer | None = None
        self._hidden = np.zeros(39)
        self._steps, self._success = 0, False

    def reset(self, seed: int) -> Observation:
        """Place objects and goal by `seed`, and return the first observation."""
        self._simulated.seed(seed)
        self._hidden, _ = self._simulated.reset()
        self._steps, self._success = 0, False
        # Meta-World moves the goal after the last kinematics; this draws it where it is and changes nothing that moves.
        import_module("mujoco").mj_kinematics(self._simulated.model, self._simulated.data)
        return self.observe()

    def step(self, action: np.ndarray) -> tuple[bool, bool]:
        """Move the gripper by (x, y, z) centimeters and close it, each in [-1, 1]."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"the action is {action.tolist()}: {self.name} expects 4 finite numbers")
        self._hidden, _, _, _, told = self._simulated.step(action.clip(-1, 1))
        self._steps += 1
        self._success = self._success or bool(told["success"])
        return self._success, self._success or self._steps >= self._horizon

    def observe(self) -> Observation:
        """The images, the gripper's position in meters, its opening in [0, 1]."""
        images = {name: self._draw(self._size, self._size, view) for name, view in self._views.items()}
        state = self._hidden[:4].astype(np.float32)
        return Simulation(images, self.instruction, state, self.name, self._hidden.copy())

    def frame(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 of the first camera."""
        return self._draw(height, width, self._views[self.cameras[0]])

    def close(self) -> None:
        """Free the renderer; a second call does nothing."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _draw(self, height: int, width: int, view: str) -> np.ndarray:
        if self._renderer is None:
            self._renderer = Renderer(self._simulated.model)
        drawn = self._renderer(self._simulated.data, view, height, width)
        return np.ascontiguousarray(drawn[::-1, ::-1] if view in UPSIDE_DOWN else drawn)


def _simulation(name: str) -> SawyerXYZEnv:
    """The environment of Meta-World, which places objects and goal at each reset by its own generator and returns the goal."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise ValueError(f"Meta-World is not installed ({error}): pip install 'vlm-vision[sim]'") from None
    made = ALL_V3_ENVIRONMENTS[name]()
    made._partially_observable = False
    made.__dict__.pop("sawyer_observation_space", None)  # kept from when it was
    made._set_task_called, made._freeze_rand_vec, made.seeded_rand_vec = True, False, True
    return made
