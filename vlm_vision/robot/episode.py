"""A recorded episode from any source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_vision.preprocess.images import ImageInput


@dataclass(frozen=True)
class Episode:
    """T moments of one robot at one task.

    Args:
        task: the instruction, in words.
        images: camera name -> T images, RGB; or one uint8 array (T, H, W, 3).
        actions: (T, A), the action after each moment, in the robot's own units.
        states: (T, S), the state that the robot reported; None if it has none.
        success: whether the task was done in the end; None if unknown.

    Raises:
        ValueError: lengths that differ, or numbers that are not finite.
    """

    task: str
    images: Mapping[str, Sequence[ImageInput] | np.ndarray]
    actions: np.ndarray
    states: np.ndarray | None = None
    success: bool | None = None

    def __post_init__(self) -> None:
        numbers = {"actions": self.actions} | ({} if self.states is None else {"states": self.states})
        for name, values in numbers.items():
            if np.ndim(values) != 2 or not np.isfinite(np.asarray(values, dtype=np.float64)).all():
                raise ValueError(f"{name} of {self.task!r} have shape {np.shape(values)}: expected (T, D), all finite")
        lengths = {name: len(values) for name, values in {**self.images, **numbers}.items()}
        if not len(self) or len(set(lengths.values())) != 1:
            raise ValueError(
                f"the parts of an episode of {self.task!r} have lengths {lengths}: expected one for each moment"
            )

    def __len__(self) -> int:
        return len(self.actions)
