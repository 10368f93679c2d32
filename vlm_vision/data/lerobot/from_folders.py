"""Episodes from plain folders: images or a video for each camera, numbers in a file, the task as text."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm_vision.data.lerobot.video import VideoReader
from vlm_vision.preprocess.images import ImageInput
from vlm_vision.robot.episode import Episode

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NUMBERS = (".npy", ".csv", ".json")
VIDEO = ".mp4"
TASK, TABLES = "task.txt", ("actions", "states")
BY_SYSTEMS = ("thumbs.db", "desktop.ini")
"""Files that Windows adds to folders; those of other systems begin with a dot."""


class EpisodeFolders(Sequence[Episode]):
    """The sub-folders of a folder, each an episode, in the order of their names (`2` before `10`).

    episode_0/
        task.txt            the instruction, in words
        actions.npy         or .csv or .json: (T, A)
        states.npy          the same, if the robot has states: (T, S)
        front/000000.png    T images of the camera "front", in the order of their names;
        wrist.mp4           or a video of T frames

    Suffixes may be in capitals. Hidden files are ignored; any other file is an error. Everything is checked at once except
    the images, which are opened at access.

    Raises:
        ValueError: no episode; one without a task, actions or cameras, or with an unknown file;
            cameras, states or numbers that differ from the first; lengths that differ; numbers that are not finite. It names the
            episode.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {folder}: expected one with a sub-folder for each episode")
        self.paths = [path for path in _shown(self.folder) if path.is_dir()]
        if not self.paths:
            raise ValueError(f"{folder} holds no sub-folders: expected one for each episode")
        first: _Kind | None = None
        for path in self.paths:
            kind = _kind(path)
            first = first or kind
            if kind != first:
                raise ValueError(f"episode {path} has {kind}, unlike {self.paths[0]} with {first}: make them equal")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Episode:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _read(self.paths[index])


@dataclass(frozen=True)
class _Kind:
    """Properties that all episodes share."""

    cameras: tuple[str, ...]
    action_dim: int
    state_dim: int

    def __str__(self) -> str:
        states = f"states of {self.state_dim}" if self.state_dim else "no states"
        return f"the cameras {', '.join(self.cameras)}, actions of {self.action_dim} numbers and {states}"


def _kind(path: Path) -> _Kind:
    """The properties of an episode. Raises ValueError for an invalid one."""
    episode = _read(path)
    states = 0 if episode.states is None else np.shape(episode.states)[1]
    return _Kind(tuple(sorted(episode.images)), np.shape(episode.actions)[1], states)


def _read(path: Path) -> Episode:
    cameras: dict[str, Sequence[ImageInput]] = {}
    for item in _shown(path):
        if item.is_dir():
            cameras[item.name] = _images(item)
        elif item.suffix.lower() == VIDEO:
            if item.stem in cameras:
                raise ValueError(f"episode {path} has the camera {item.stem} twice: remove a folder or a video")
            cameras[item.stem] = VideoFrames(item)
        elif item.name != TASK and (item.stem not in TABLES or item.suffix.lower() not in NUMBERS):
            raise ValueError(
                f"{item} does not belong to an episode: expected {TASK}, {' and '.join(TABLES)} ({', '.join(NUMBERS)}), folders of "
                f"images and {VIDEO} videos; remove it"
            )
    if not cameras:
        raise ValueError(f"episode {path} has no camera: expected sub-folders of images, or {VIDEO} files")
    actions, states = (_numbers(path, name) for name in TABLES)
    if actions is None:
        raise ValueError(
            f"episode {path} has no actions: expected one of {', '.join('actions' + end for end in NUMBERS)}"
        )
    try:
        return Episode(_task(path), cameras, actions, states)
    except ValueError as error:
        raise ValueError(f"episode {path}: {error}") from None


def _task(path: Path) -> str:
    file = path / TASK
    task = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    if not task:
        raise ValueError(f"{TASK} is missing or empty: expected the instruction in words")
    return " ".join(task.split())


def _images(folder: Path) -> list[Path]:
    found = _shown(folder)
    if other := [path for path in found if path.suffix.lower() not in IMAGES]:
        raise ValueError(
            f"{other[0]} is not an image: expected {', '.join(IMAGES)} in the folder of a camera; remove it"
        )
    if not found:
        raise ValueError(f"{folder} holds no images: expected those of a camera")
    return found


def _shown(folder: Path) -> list[Path]:
    """Visible content of a folder, in the order of names."""
    found = (path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() not in BY_SYSTEMS)
    return sorted(found, key=_natural)


def _numbers(path: Path, name: str) -> np.ndarray | None:
    """(T, D) float64; None if there is no such file."""
    files = [file for file in _shown(path) if file.stem == name and file.suffix.lower() in NUMBERS]
    if not files:
        return None
    if len(files) > 1:
        raise ValueError(f"episode {path} has {' and '.join(file.name for file in files)}: keep one")
    try:
        kind = files[0].suffix.lower()
        if kind == ".npy":
            values = np.load(files[0], allow_pickle=False)
        elif kind == ".json":
            values = np.array(json.loads(files[0].read_text(encoding="utf-8")))
        else:
            values = np.array(_rows(files[0]))
        values = values.astype(np.float64)
    except (OSError, TypeError, ValueError, EOFError, RecursionError) as error:
        raise ValueError(f"{files[0]} holds no table of numbers ({' '.join(str(error).split())})") from None
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"{files[0]} holds numbers of shape {values.shape}: expected (T, D), one row for each time step"
        )
    if not (finite := np.isfinite(values).all(1)).all():
        raise ValueError(f"{files[0]}, row {int(np.flatnonzero(~finite)[0])}, holds NaN or Inf: repair it")
    return values


def _rows(file: Path) -> list[list[float]]:
    """Table of a .csv; a first row of names is skipped."""
    rows = [line.split(",") for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    try:
        [float(cell) for cell in rows[0]]
    except (IndexError, ValueError):
        rows = rows[1:]
    return [[float(cell) for cell in row] for row in rows]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key of a name, with numbers by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


class VideoFrames(Sequence[np.ndarray]):
    """The frames of a video file by number, fastest in order."""

    def __init__(self, path: Path):
        self.path = path
        self._video = VideoReader(path)
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._video)

    def __getitem__(self, index: int) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._times = self._times or self._video.times()
        if not 0 <= index < len(self._times):
            raise IndexError(f"frame {index} of {len(self._times)}")
        return self._video.at(self._times[index], 1e-4)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))
