"""Layout of LeRobotDataset v3: its files, and their description in meta/info.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vlm_vision.files import read_json

INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

ACTION, STATE, SUCCESS = "action", "observation.state", "next.success"
CAMERA = "observation.images."

VERSION = "v3.0"


@dataclass(frozen=True)
class Feature:
    """Content of one column, or one video, for each time step.

    Args:
        dtype: "image" (in the tables), "video", "string" or one of numpy's.
        shape: shape of one time step; (H, W, 3) of images.
        names: names of the numbers, in any nesting of info.json; None if unknown.
        info: further facts about videos in info.json.
    """

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flat_names(self) -> tuple[str, ...]:
        """Names of the numbers in their order; empty if unknown, or not one for each."""
        names = tuple(_flat(self.names))
        return names if len(names) == math.prod(self.shape) else ()

    @property
    def is_image(self) -> bool:
        """Whether it is a color image, not a depth map."""
        depth = any(self.info.get(name) for name in ("is_depth_map", "video.is_depth_map"))
        return self.dtype in ("image", "video") and not depth

    @property
    def is_table(self) -> bool:
        """Whether it is numbers or text in the tables."""
        return self.dtype == "string" or _is_number(self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """As info.json has it."""
        described = {"dtype": self.dtype, "shape": list(self.shape), "names": self.names}
        return described | ({"info": dict(self.info)} if self.info else {})


COUNTERS = {
    name: Feature("float32" if name == "timestamp" else "int64", (1,))
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index")
}
"""Columns that every data set has."""


@dataclass(frozen=True)
class Info:
    """meta/info.json. Sizes of files are in MiB; a new file begins where the next episode would go over."""

    fps: float
    features: dict[str, Feature]
    total_episodes: int = 0
    total_frames: int = 0
    total_tasks: int = 0
    robot_type: str = ""
    chunks_size: int = 1000
    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200
    data_path: str = DATA_PATH
    video_path: str = VIDEO_PATH

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps is {self.fps}: expected time steps per second, more than 0")
        sizes = (self.chunks_size, self.data_files_size_in_mb, self.video_files_size_in_mb)
        if min(sizes) <= 0:
            raise ValueError(f"chunks_size and sizes of files are {sizes}: expected more than 0")

    @property
    def videos(self) -> list[str]:
        """Features that are videos."""
        return [name for name, feature in self.features.items() if feature.dtype == "video"]

    def to_dict(self) -> dict[str, Any]:
        """As info.json has it."""
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot_type or None,
            "total_episodes": self.total_episodes,
            "total_frames": self.total_frames,
            "total_tasks": self.total_tasks,
            "chunks_size": self.chunks_size,
            "data_files_size_in_mb": self.data_files_size_in_mb,
            "video_files_size_in_mb": self.video_files_size_in_mb,
            "fps": self.fps,
            "splits": {"train": f"0:{self.total_episodes}"},
            "data_path": self.data_path,
            "video_path": self.video_path if self.videos else None,
            "features": {name: feature.to_dict() for name, feature in self.features.items()},
        }


def read_info(folder: Path) -> Info:
    """The description of the data set in `folder`.

    Raises:
        ValueError: there is none, it has another version, or it cannot be read.
    """
    path = folder / INFO
    if not path.is_file():
        raise ValueError(f"{folder} has no {INFO}: expected the folder of a LeRobotDataset v3")
    info = read_json(path)
    version = str(info.get("codebase_version"))
    if not version.startswith("v3."):
        raise ValueError(
            f"{folder} is a LeRobotDataset {version}, expected v3: convert it with lerobot's convert_dataset_v21_to_v30"
        )
    try:
        features = {str(name): _feature(feature) for name, feature in info["features"].items()}
        for name in COUNTERS:
            if not _is_number(features[name].dtype) or features[name].shape != (1,):
                raise ValueError(f"{name} is not one number")
        counts = {name: int(info[name]) for name in ("total_episodes", "total_frames", "total_tasks")}
        named = ("chunks_size", "data_files_size_in_mb", "video_files_size_in_mb", "data_path", "video_path")
        rest = {name: info[name] for name in named if info.get(name) is not None}
        return Info(info["fps"], features, robot_type=str(info.get("robot_type") or ""), **counts, **rest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} does not describe a LeRobotDataset v3 ({reason}): download it again") from None


def _feature(described: Mapping[str, Any]) -> Feature:
    info = described.get("info") or described.get("video_info") or {}
    dtype, shape, names = (
        str(described["dtype"]),
        tuple(int(side) for side in described["shape"]),
        described.get("names"),
    )
    if dtype in ("image", "video") and isinstance(names, list) and names[:1] in (["channel"], ["channels"]):
        shape, names = (*shape[1:], shape[0]), [*names[1:], names[0]]  # only the description differs
    return Feature(dtype, shape, names, info)


def _flat(names: Any) -> list[str]:
    """Names from any nesting: ["x"], [["x"]], {"left": ["x"], "right": ["x"]}, {"x": 0}."""
    if isinstance(names, str):
        return [names]
    if isinstance(names, Mapping):
        if all(isinstance(place, int) for place in names.values()):
            return sorted(names, key=names.__getitem__)
        names = list(names.values())
    return [name for part in names for name in _flat(part)] if isinstance(names, list | tuple) else []


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


def file_in(folder: Path, pattern: str, **places: Any) -> Path:
    """The file that a path of info.json names. Raises ValueError for one outside the folder, or an invalid pattern."""
    try:
        relative = PurePosixPath(pattern.format(**places))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / INFO} has the invalid path {pattern!r} ({error!r}): download it again") from None
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{folder / INFO} has the path {pattern!r}, which leaves the folder: do not use this data set")
    return folder / relative


def next_place(chunk: int, file: int, chunks_size: int) -> tuple[int, int]:
    """The next chunk and file."""
    return (chunk, file + 1) if file + 1 < chunks_size else (chunk + 1, 0)


def camera_key(camera: str) -> str:
    """The feature of a camera: "wrist" -> "observation.images.wrist". A full name stays.

    Raises:
        ValueError: a name with a slash, which would be a folder, or an empty name.
    """
    if not camera or "/" in camera:
        raise ValueError(f"camera {camera!r} has an invalid name: expected a name without '/'")
    return camera if camera.startswith("observation.") else CAMERA + camera


def camera_name(key: str) -> str:
    """The reverse of `camera_key`."""
    return key.removeprefix(CAMERA)
