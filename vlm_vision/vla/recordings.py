"""Recordings of one robot, in one or several data sets, as training data."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlm_vision.data.lerobot import RobotDataset
from vlm_vision.data.lerobot.mapping import number_features
from vlm_vision.robot.observation import PolicySpec
from vlm_vision.robot.statistics import Named, join_names
from vlm_vision.robot.window import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recordings(Sequence[Window]):
    """The moments of all data sets, one after another.

    Args:
        datasets: by the name of their statistics.
        chunk: actions of a window.
        read_state: whether the robot's state is read.
        raw_actions: numbers of an action that are not normalized.
        exact: False for the statistics that a data set stores.
        decode: False for the names of images in place of the images, as `RobotDataset.window`.

    Raises:
        ValueError: data sets of robots that differ.
    """

    datasets: Mapping[str, RobotDataset]
    chunk: int
    read_state: bool = True
    raw_actions: tuple[int, ...] = ()
    exact: bool = True
    decode: bool = True

    def __post_init__(self) -> None:
        robots = {name: self._robot(one) for name, one in self.datasets.items()}
        if len(set(robots.values())) > 1:
            details = "; ".join(
                f"{name}: cameras {list(cameras)}, {actions} numbers of action, {state} of state, {fps} frames per second"
                for name, (cameras, actions, state, fps) in robots.items()
            )
            raise ValueError(
                f"the data sets are of different robots ({details}): train on each separately, or use equal camera names"
            )
        if self.read_state:
            for name, one in self.datasets.items():
                self._check_state(name, one)
        named = {name: one.action_names for name, one in self.datasets.items() if one.action_names}
        if len(set(named.values())) > 1:
            details = "; ".join(f"{name}: {', '.join(names)}" for name, names in named.items())
            raise ValueError(
                f"the data sets name the numbers of an action differently ({details}): train on each separately"
            )

    def __len__(self) -> int:
        return sum(map(len, self.datasets.values()))

    def __getitem__(self, index: int) -> Window:  # pyright: ignore[reportIncompatibleMethodOverride]
        if index < 0:
            raise IndexError(f"index is {index}: expected 0 to {len(self) - 1}")
        for name, one in self.datasets.items():
            if index < len(one):
                return replace(one.window(index, chunk=self.chunk, decode=self.decode), data=name)
            index -= len(one)
        raise IndexError(f"index is past the last of {len(self)} moments")

    def image_names(self) -> Iterator[str]:
        """The name of every image, `episode/frame/camera`; several data sets have equal ones."""
        for one in self.datasets.values():
            yield from one.image_names()

    @property
    def tasks(self) -> list[str]:
        """Instructions, each once."""
        return list(dict.fromkeys(task for one in self.datasets.values() for task in one.tasks.values()))

    @property
    def spec(self) -> PolicySpec:
        """The spec of a policy that trains on these recordings."""
        cameras, action_dim, state_dim, fps = self._robot(next(iter(self.datasets.values())))
        names = next((one.action_names for one in self.datasets.values() if one.action_names), ())
        return PolicySpec(cameras, action_dim, self.chunk, state_dim, names, fps)

    @property
    def statistics(self) -> Named:
        """Statistics of these recordings, with a mask where numbers of an action are not normalized.

        Exact ones are computed from the numbers: the quantiles that LeRobot stores with a data set are means over its episodes.

        Raises:
            ValueError: numbers to leave alone that an action does not have; no stored statistics of the action.
        """
        found: Named = {}
        for name, one in self.datasets.items():
            wanted = ["action", "observation.state"] if self.read_state else ["action"]
            if self.exact:
                found[name] = {key: one.measured(key) for key in wanted if key in one.features}
            else:
                found[name] = {key: one.statistics[key] for key in wanted if key in one.statistics}
            if "action" not in found[name]:
                raise ValueError(f"{one.folder} stores no statistics of the action: set data.statistics to exact")
            action = found[name]["action"]
            mask = np.ones(action.dim, dtype=bool)
            if bad := [number for number in self.raw_actions if not 0 <= number < action.dim]:
                raise ValueError(f"raw_actions names {bad}: an action has the numbers 0 to {action.dim - 1}")
            mask[list(self.raw_actions)] = False
            found[name]["action"] = replace(action, mask=None if mask.all() else mask)
        return found

    @staticmethod
    def _check_state(name: str, one: RobotDataset) -> None:
        """Raise ValueError for a data set whose state may be under another name; warn where it has none."""
        if "observation.state" in one.features:
            return
        others = [other for other in number_features(one.info) if not other.startswith(("action", "next."))]
        if others:
            raise ValueError(
                f"data set {name} has no observation.state to read, and the features {join_names(others)}: set data.state to "
                "the ones that are the state, or data.read_state to false"
            )
        log.warning("data set %s has no state: the policy reads none", name)

    def _robot(self, one: RobotDataset) -> tuple[tuple[str, ...], int, int, float]:
        """Cameras, numbers of action and of state, moments in a second."""
        actions = one.column("action").shape[1]
        state = one.features.get("observation.state")
        return one.cameras, actions, state.shape[0] if state is not None and self.read_state else 0, one.fps
