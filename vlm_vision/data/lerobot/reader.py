"""A data set of episodes, by time step, by window or by episode."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlm_vision.data.lerobot.cells import MEMORY, Cells
from vlm_vision.data.lerobot.layout import ACTION, STATE, STATS, SUCCESS, Feature, Info, camera_name, read_info
from vlm_vision.data.lerobot.meta import StoredEpisode, read_episodes, read_tasks
from vlm_vision.data.lerobot.rows import read_rows
from vlm_vision.data.lerobot.video import VideoReaders
from vlm_vision.robot.episode import Episode
from vlm_vision.robot.observation import Observation
from vlm_vision.robot.statistics import Statistics, choose_statistics, join_names, read_statistics
from vlm_vision.robot.window import Window


@dataclass(frozen=True)
class Frame:
    """One time step: images, numbers and texts.

    Args:
        episode: number of its episode.
        step: its index in the episode.
        values: feature -> array of the feature's shape; text as str.
    """

    episode: int
    step: int
    observation: Observation
    values: dict[str, Any]


class RobotDataset:
    """A LeRobotDataset v3. `read_dataset` makes it; it can be pickled and used after a fork, by one thread at a time.

    Numbers are in memory, shared with forked workers, read again by spawned ones; images are decoded at access.
    """

    def __init__(
        self,
        folder: Path,
        info: Info,
        episodes: Sequence[StoredEpisode],
        cameras: Mapping[str, str],
        tolerance: float | None,
        memory: int,
    ):
        self.folder, self.info, self.episodes = folder, info, tuple(episodes)
        self.cameras = tuple(cameras)
        self.tasks = read_tasks(folder)
        self.tolerance = 0.25 / info.fps if tolerance is None else tolerance
        if not 0 < self.tolerance < 0.5 / info.fps:
            raise ValueError(
                f"tolerance is {tolerance} s: expected more than 0 and less than half a time step, {0.5 / info.fps}"
            )
        if memory < 0:
            raise ValueError(f"memory is {memory}: expected bytes, 0 or more")
        self._keys = dict(cameras)
        self._values, self._rows = read_rows(info, episodes)
        if unknown := set(np.unique(self._values["task_index"]).tolist()) - set(self.tasks):
            raise ValueError(f"{folder} has time steps of task {min(unknown)}, which its tasks.parquet lacks")
        self._starts = np.cumsum([0, *(episode.length for episode in self.episodes)])
        self._memory, self._videos, self._cells = memory, VideoReaders(), Cells(memory)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.info, self.episodes, self._keys, self.tolerance, self._memory)

    def __len__(self) -> int:
        """Number of time steps."""
        return int(self._starts[-1])

    @property
    def num_episodes(self) -> int:
        return len(self.episodes)

    @property
    def fps(self) -> float:
        return self.info.fps

    @property
    def features(self) -> dict[str, Feature]:
        return self.info.features

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the numbers of an action; empty if unknown."""
        return self.features[ACTION].flat_names if ACTION in self.features else ()

    @cached_property
    def statistics(self) -> dict[str, Statistics]:
        """Feature -> its statistics in the data set, over all its episodes.

        Raises:
            ValueError: the data set has none. `Statistics.of(dataset.column("action"))` measures them.
        """
        return choose_statistics(read_statistics(self.folder / STATS), "")

    def column(self, feature: str) -> np.ndarray:
        """A feature at all time steps, (N, *shape), read-only.

        Raises:
            ValueError: no such feature of numbers or text.
        """
        if feature not in self._values:
            raise ValueError(
                f"{self.folder} has no numbers or text called {feature!r}: it has {join_names(self._values)}"
            )
        return self._values[feature]

    def frame(self, index: int) -> Frame:
        """A time step, 0 <= index < len(self).

        Raises:
            ValueError: an image that cannot be read; it names the file, the episode and the frame.
        """
        episode, step = self._place(index)
        values = {name: copy(column[index]) for name, column in self._values.items()}
        return Frame(episode.index, step, self._observation(index, episode, step), values)

    def window(self, index: int, *, chunk: int, decode: bool = True) -> Window:
        """A time step with the `chunk` actions from it on.

        Args:
            decode: False for the names of the images, `episode/frame/camera` as the data set calls the camera, in place of
                the images.

        Raises:
            ValueError: as `frame`; a chunk below 1; a data set without actions.
        """
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}: expected 1 action or more")
        episode, step = self._place(index)
        ahead = np.arange(chunk)
        left = episode.length - step
        actions = self.column(ACTION)[index + np.minimum(ahead, left - 1)]
        observation = self._observation(index, episode, step, decode)
        return Window(observation, actions, ahead >= left, episode.index, step)

    def image_names(self) -> Iterator[str]:
        """The name of every image, `episode/frame/camera`."""
        for episode in self.episodes:
            for step in range(episode.length):
                yield from (self._name(episode, step, camera) for camera in self.cameras)

    def _name(self, episode: StoredEpisode, step: int, camera: str) -> str:
        return f"{episode.index}/{step}/{camera_name(self._keys[camera])}"

    def episode(self, number: int) -> Episode:
        """The episode at an index of `episodes`, with images decoded at access.

        Raises:
            ValueError: no actions in the data set, or an episode of several tasks.
        """
        stored, first, last = self.episodes[number], self._starts[number], self._starts[number + 1]
        tasks = np.unique(self._values["task_index"][first:last])
        if len(tasks) != 1:
            names = ", ".join(repr(self.tasks[task]) for task in tasks.tolist())
            raise ValueError(f"{self.folder}, episode {stored.index} has the tasks {names}: read it by frame")
        return Episode(
            task=self.tasks[int(tasks[0])],
            images={camera: _CameraImages(self, camera, int(first), stored.length) for camera in self.cameras},
            actions=self.column(ACTION)[first:last],
            states=self._values[STATE][first:last] if STATE in self._values else None,
            success=bool(self._values[SUCCESS][first:last].any()) if SUCCESS in self._values else None,
        )

    def image(self, index: int, camera: str, videos: VideoReaders | None = None) -> np.ndarray:
        """Image of a camera at a time step, uint8 (H, W, 3) RGB. Raises ValueError as `frame`.

        Args:
            videos: open videos to read from; default the data set's, which seek as random order needs.
        """
        episode, step = self._place(index)
        return self._image(index, episode, step, camera, videos)

    def _place(self, index: int) -> tuple[StoredEpisode, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"time step {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.episodes[number], int(index - self._starts[number])

    def _observation(self, index: int, episode: StoredEpisode, step: int, decode: bool = True) -> Observation:
        images: dict[str, np.ndarray | str] = {
            camera: self._image(index, episode, step, camera) if decode else self._name(episode, step, camera)
            for camera in self.cameras
        }
        state = self._values[STATE][index].copy() if STATE in self._values else None
        return Observation(images, self.tasks[int(self._values["task_index"][index, 0])], state)

    def _image(
        self, index: int, episode: StoredEpisode, step: int, camera: str, videos: VideoReaders | None = None
    ) -> np.ndarray:
        key = self._keys[camera]
        feature = self.features[key]
        try:
            if feature.dtype == "image":
                image = self._cells.image(episode.file, key, int(self._rows[index]))
            else:
                clip = episode.clips[key]
                seconds = clip.start + float(self._values["timestamp"][index, 0])
                image = (videos or self._videos).at(clip.file, seconds, self.tolerance)
        except ValueError as error:
            raise ValueError(f"episode {episode.index}, frame {step}, camera {camera}: {error}") from None
        if image.shape != feature.shape:
            raise ValueError(
                f"episode {episode.index}, frame {step}, camera {camera}: the image has shape {image.shape}, "
                f"info.json states {feature.shape}: download the data set again"
            )
        return image


@dataclass(frozen=True)
class _CameraImages(Sequence[np.ndarray]):
    """Images of a camera in an episode."""

    dataset: RobotDataset = field(repr=False)
    camera: str
    first: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= step < self.length:
            raise IndexError(f"time step {step} of {self.length}")
        return self.dataset.image(self.first + step, self.camera)


def read_dataset(
    source: str | os.PathLike[str],
    *,
    episodes: Iterable[int] | None = None,
    cameras: Mapping[str, str] | None = None,
    tolerance: float | None = None,
    revision: str | None = None,
    memory: int = MEMORY,
) -> RobotDataset:
    """Open a LeRobotDataset v3.

    Args:
        source: its folder, or a hub id, of which the files of the chosen episodes and cameras are fetched.
        episodes: numbers of the episodes to read; default all.
        cameras: new name -> name in the data set, of the cameras to read; default all, with their own names, which are
            features without "observation.images.". Depth maps are not read.
        tolerance: largest difference in seconds between a video frame and its time step; default a quarter of a step.
        revision: branch, tag ("v3.0") or commit of a hub id.
        memory: bytes of PNG images that are kept in memory. If not all fit, time steps in random order take about
            twenty times as long.

    Raises:
        ValueError: no such data set, episode or camera; a damaged table, or an action or state that is not finite.
    """
    folder, on_hub = Path(source).expanduser(), not os.path.exists(Path(source).expanduser())
    if on_hub:
        folder = _fetched(os.fspath(source), revision, ["meta/*"])
    info = read_info(folder)
    named = _cameras(folder, info, cameras)
    stored = read_episodes(folder, info, episodes)
    if on_hub:
        files = {episode.file for episode in stored}
        files |= {clip.file for one in stored for key, clip in one.clips.items() if key in named.values()}
        _fetched(os.fspath(source), revision, ["meta/*", *(file.relative_to(folder).as_posix() for file in files)])
    return RobotDataset(folder, info, stored, named, tolerance, memory)


def _cameras(folder: Path, info: Info, wanted: Mapping[str, str] | None) -> dict[str, str]:
    """Name -> feature."""
    known = {camera_name(key): key for key, feature in info.features.items() if feature.is_image}
    if wanted is None:
        return known
    for name in wanted.values():
        if name not in known and name not in known.values():
            raise ValueError(f"{folder} has no camera {name!r}: it has {join_names(known) or 'none'}")
    return {ours: known.get(name, name) for ours, name in wanted.items()}


def _fetched(source: str, revision: str | None, patterns: list[str]) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise ValueError(f"there is no folder {source}, and it is no hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds: offline, unknown, gated
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"there is no folder {source}, and the hub did not give it ({type(error).__name__}: {reason})"
        ) from error
