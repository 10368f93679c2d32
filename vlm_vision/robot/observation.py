"""Observation of a robot, and the spec of a policy that uses it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from vlm_vision.preprocess.images import ImageInput, load_image

_MOST_CHARACTERS = 2000
_MARKS = ("<image>", "<video>")
"""Placeholders of images in a prompt, which an instruction must not contain."""


@dataclass(frozen=True)
class Observation:
    """One moment of one robot.

    Args:
        images: camera name -> image, RGB: PIL, path, uint8 numpy (H, W, 3) or uint8 torch (3, H, W).
        instruction: what to do, in words.
        state: (S,) in the robot's own units; None for a robot that reports none.
    """

    images: Mapping[str, ImageInput]
    instruction: str
    state: np.ndarray | None = None


@dataclass(frozen=True)
class PolicySpec:
    """Inputs and outputs of a policy.

    Args:
        cameras: names of the images that it uses, in its order.
        action_dim: numbers of an action.
        chunk: actions for one observation, one for each time step.
        state_dim: numbers of the robot's state; 0 for a policy that does not read it.
        action_names: name of each number of an action; empty if unknown.
        fps: time steps in a second; 0 if unknown.
    """

    cameras: tuple[str, ...]
    action_dim: int
    chunk: int = 1
    state_dim: int = 0
    action_names: tuple[str, ...] = ()
    fps: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        object.__setattr__(self, "action_names", tuple(self.action_names))
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras are {list(self.cameras)}: expected at least one, with different names")
        if self.action_dim < 1 or self.chunk < 1 or self.state_dim < 0:
            raise ValueError(
                f"action_dim is {self.action_dim}, chunk {self.chunk}, state_dim {self.state_dim}: expected 1, 1 and 0 or more"
            )
        if self.action_names and len(self.action_names) != self.action_dim:
            raise ValueError(
                f"there are {len(self.action_names)} action_names for {self.action_dim} numbers: expected one name for each"
            )

    def check(self, observation: Observation) -> Observation:
        """The observation with each image as upright RGB in memory, so that no later step converts it again.

        Raises:
            ValueError: a policy of this kind cannot use the observation, and why, in one sentence.
        """
        cameras = set(observation.images)
        if cameras != set(self.cameras):
            raise ValueError(
                f"the observation has cameras {sorted(cameras)}, but this policy uses {list(self.cameras)}: pass exactly these"
            )
        images = {}
        for name, image in observation.images.items():
            try:
                images[name] = load_image(image)
            except ValueError as error:
                raise ValueError(f"camera {name}: {error}") from None
        _check_instruction(observation.instruction)
        self._check_state(observation.state)
        return replace(observation, images=images)

    def _check_state(self, state: np.ndarray | None) -> None:
        if not self.state_dim:
            return
        if state is None:
            raise ValueError(
                f"the observation has no state, but this policy reads one of {self.state_dim} numbers: pass it"
            )
        try:
            values = np.asarray(state)
        except ValueError:  # rows of several lengths
            values = np.empty((), dtype=object)
        if values.dtype.kind not in "biuf":
            shown = state.tolist() if isinstance(state, np.ndarray) else state
            raise ValueError(f"the state is {shown!r:.80}: expected {self.state_dim} numbers")
        if values.shape != (self.state_dim,):
            raise ValueError(f"the state has shape {values.shape}: expected ({self.state_dim},)")
        if not np.isfinite(values).all():
            raise ValueError(f"the state is {values.tolist()}: expected finite numbers; check the sensor")


def _check_instruction(instruction: object) -> None:
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"the instruction is {instruction!r:.80}: expected the task in words")
    if len(instruction) > _MOST_CHARACTERS:
        raise ValueError(
            f"the instruction has {len(instruction)} characters: expected at most {_MOST_CHARACTERS}; shorten it"
        )
    if held := [mark for mark in _MARKS if mark in instruction.lower()]:
        raise ValueError(f"the instruction contains {held[0]}, the placeholder of an image in a prompt: remove it")
