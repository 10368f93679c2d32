"""Episodes to a LeRobotDataset v3, one in memory at a time, whole or not at all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_vision.data.lerobot.encode import VideoFiles, check_size, checked_codec, png, write_clip
from vlm_vision.data.lerobot.layout import (
    ACTION,
    COUNTERS,
    DATA_PATH,
    EPISODES_PATH,
    INFO,
    STATE,
    STATS,
    SUCCESS,
    TASKS,
    Feature,
    Info,
    camera_key,
)
from vlm_vision.data.lerobot.statistics import JsonStatistics, PixelCounts, of_numbers
from vlm_vision.data.lerobot.tables import read_table, to_array
from vlm_vision.data.lerobot.written import RollingTables, data_table, tasks_table
from vlm_vision.files import new_folder, write_json
from vlm_vision.preprocess.images import load_image
from vlm_vision.robot.episode import Episode


def write_dataset(
    folder: str | Path,
    episodes: Iterable[Episode],
    *,
    fps: int,
    robot_type: str = "",
    video: bool = True,
    codec: str = "av1",
    action_names: Sequence[str] = (),
    state_names: Sequence[str] = (),
    chunks_size: int = 1000,
    data_files_size_in_mb: float = 100,
    video_files_size_in_mb: float = 200,
) -> Info:
    """Write episodes as a LeRobotDataset v3, readable by lerobot and by `read_dataset`; the folder appears when it is whole.

    Camera "wrist" becomes the feature "observation.images.wrist"; states "observation.state"; success "next.success",
    true at the last time step of an episode that succeeded. Numbers are kept as float32. Statistics are exact (`statistics.py`).

    Args:
        folder: a new folder.
        episodes: episodes with equal cameras, sizes and numbers; read one at a time.
        fps: time steps per second, a whole number, as in LeRobot.
        video: yuv420p videos, which are lossy; else PNG in the tables, which is lossless.
        codec: codec of the videos, "av1" or "h264".
        action_names, state_names: name of each number.
        chunks_size: files of a folder.
        data_files_size_in_mb, video_files_size_in_mb: a new file begins where an episode would exceed it.

    Raises:
        ValueError: the folder exists already; no episodes; one that differs from the first, or an image that cannot be read; it names
            the episode by its number.
    """
    if not isinstance(fps, int) or fps < 1:
        raise ValueError(
            f"fps is {fps}: a LeRobotDataset has a whole number of time steps per second, expected 1 or more"
        )
    names = {ACTION: tuple(action_names), STATE: tuple(state_names)}
    codec = checked_codec(codec) if video else ""
    info = Info(
        fps,
        {},
        robot_type=robot_type,
        chunks_size=chunks_size,
        data_files_size_in_mb=data_files_size_in_mb,
        video_files_size_in_mb=video_files_size_in_mb,
    )
    with new_folder(Path(folder)) as staging, ExitStack() as stack:
        writing: _DatasetWriter | None = None
        for number, episode in enumerate(episodes):
            try:
                if writing is None:
                    features = _features(episode, names, codec, fps)
                    writing = _DatasetWriter(staging, replace(info, features=features), codec)
                    stack.callback(writing.close)
                writing.add(number, episode)
            except ValueError as error:
                raise ValueError(f"episode {number} ({episode.task!r}): {error}") from None
        if writing is None:
            raise ValueError(f"there are no episodes to write to {folder}: expected at least one")
        return writing.finish()


class _DatasetWriter:
    """A data set that is being written."""

    def __init__(self, folder: Path, info: Info, codec: str):
        self.folder, self.info, self.codec, self.rate = folder, info, codec, Fraction(info.fps)
        mib, chunks = 2**20, info.chunks_size
        self.data = RollingTables(folder, DATA_PATH, limit=info.data_files_size_in_mb * mib, chunks_size=chunks)
        self.meta = RollingTables(folder, EPISODES_PATH, limit=info.data_files_size_in_mb * mib, chunks_size=chunks)
        limit = info.video_files_size_in_mb * mib
        self.videos = {key: VideoFiles(folder, key, self.rate, limit=limit, chunks_size=chunks) for key in info.videos}
        self.pixels = {key: PixelCounts.none() for key, feature in info.features.items() if feature.is_image}
        self.tasks: dict[str, int] = {}
        self.frames = self.episodes = 0
        self._rows: list[dict[str, Any]] = []
        self._schema: pa.Schema | None = None

    def add(self, number: int, episode: Episode) -> None:
        """Append an episode. Raises ValueError for one that differs from the first."""
        self._check(episode)
        task = self.tasks.setdefault(episode.task, len(self.tasks))
        numbers = self._numbers(number, episode, task)
        statistics = {name: of_numbers([values]) for name, values in numbers.items()}
        images, row = {}, {"episode_index": number, "tasks": [episode.task], "length": len(episode)}
        for camera, given in episode.images.items():
            key, counts = camera_key(camera), []
            drawn = self._drawn(camera, given, counts)
            if key in self.videos:
                clip = self.folder / "clip.mp4"
                write_clip(clip, drawn, self.rate, self.codec)
                place = self.videos[key].add(clip)
                clip.unlink()
                where = {"chunk_index": place.chunk, "file_index": place.file}
                where |= {"from_timestamp": place.start, "to_timestamp": place.end}
                row |= {f"videos/{key}/{name}": value for name, value in where.items()}
            else:
                images[key] = [png(image) for image in drawn]
            seen = sum(counts, PixelCounts.none())
            self.pixels[key] += seen
            statistics[key] = seen.to_json()
        chunk, file = self.data.add(data_table(self.info.features, numbers, images))
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + len(episode)}
        row |= {f"stats/{name}/{kind}": value for name, kinds in statistics.items() for kind, value in kinds.items()}
        self._rows.append(row)
        self.frames += len(episode)
        self.episodes += 1
        if len(self._rows) == 100:
            self._write_rows()

    def finish(self) -> Info:
        """Write the metadata of all episodes."""
        self._write_rows()
        self.close()
        statistics = {key: pixels.to_json() for key, pixels in self.pixels.items()}
        for name, feature in self.info.features.items():
            if feature.is_table:
                parts = [
                    to_array(read_table(path, [name])[name], feature.dtype, feature.shape) for path in self.data.paths
                ]
                statistics[name] = of_numbers(parts)
        write_json(self.folder / STATS, statistics)
        pq.write_table(tasks_table(list(self.tasks)), self.folder / TASKS, write_page_checksum=True)
        totals = {"total_episodes": self.episodes, "total_frames": self.frames, "total_tasks": len(self.tasks)}
        info = replace(self.info, **totals)
        write_json(self.folder / INFO, info.to_dict())
        return info

    def close(self) -> None:
        for files in (self.data, self.meta, *self.videos.values()):
            files.close()

    def _check(self, episode: Episode) -> None:
        features = self.info.features
        given = {ACTION: episode.actions} | ({} if episode.states is None else {STATE: episode.states})
        cameras = {camera_key(camera) for camera in episode.images}
        if cameras != set(self.pixels):
            raise ValueError(f"it has the cameras {sorted(cameras)}, the first episode {sorted(self.pixels)}")
        for name, present in ((STATE, episode.states is not None), (SUCCESS, episode.success is not None)):
            if present != (name in features):
                has = "has" if present else "has no"
                raise ValueError(f"it {has} {name}, unlike the first episode: set it in all or in none")
        for name, values in given.items():
            if np.shape(values)[1:] != features[name].shape:
                raise ValueError(
                    f"its {name} has {np.shape(values)[1]} numbers, that of the first episode {features[name].shape[0]}"
                )
        if not episode.task.strip():
            raise ValueError("it has no task: expected an instruction in words")

    def _numbers(self, number: int, episode: Episode, task: int) -> dict[str, np.ndarray]:
        """Feature -> (T, *shape)."""
        length = len(episode)
        steps = np.arange(length)
        found = {ACTION: np.asarray(episode.actions)}
        if episode.states is not None:
            found[STATE] = np.asarray(episode.states)
        if episode.success is not None:
            found[SUCCESS] = (steps == length - 1) & episode.success
        found |= {"timestamp": steps / self.info.fps, "frame_index": steps, "index": self.frames + steps}
        found |= {"episode_index": np.full(length, number), "task_index": np.full(length, task)}
        features = self.info.features
        with np.errstate(over="ignore"):
            numbers = {
                name: values.astype(features[name].dtype).reshape(length, *features[name].shape)
                for name, values in found.items()
            }
        if large := [name for name, values in numbers.items() if not np.isfinite(values).all()]:
            raise ValueError(f"its {large[0]} has numbers too large for float32: repair the data")
        return {name: numbers[name] for name in features if name in numbers}

    def _drawn(self, camera: str, given: Any, counts: list[PixelCounts]) -> Iterator[np.ndarray]:
        """The images of a camera, one at a time, added to the statistics."""
        shape = self.info.features[camera_key(camera)].shape
        for step in range(len(given)):
            try:
                image = np.asarray(load_image(given[step]))
            except ValueError as error:
                raise ValueError(f"frame {step} of camera {camera}: {error}") from None
            if image.shape != shape:
                sizes = " and ".join(f"{size[0]} x {size[1]}" for size in (image.shape, shape))
                raise ValueError(
                    f"frame {step} of camera {camera}: sizes differ, {sizes} of the first: resize them to one size"
                )
            counts.append(PixelCounts.of(image))
            yield image

    def _write_rows(self) -> None:
        """The rows of meta/episodes."""
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, self._schema)
        self._schema = table.schema
        for name, value in zip(("chunk_index", "file_index"), self.meta.place(table.nbytes), strict=True):
            table = table.append_column(f"meta/episodes/{name}", pa.array([value] * len(self._rows), pa.int64()))
        self.meta.add(table)
        self._rows.clear()


def _features(episode: Episode, names: Mapping[str, tuple[str, ...]], codec: str, fps: int) -> dict[str, Feature]:
    """Features of a data set that begins with this episode; codec is empty for PNG."""
    found: dict[str, Feature] = {}
    for camera, given in episode.images.items():
        key = camera_key(camera)
        if key in found or key == STATE:
            raise ValueError(f"camera {camera!r} would be the feature {key}, which exists already: rename it")
        try:
            shape = np.asarray(load_image(given[0])).shape
        except ValueError as error:
            raise ValueError(f"frame 0 of camera {camera}: {error}") from None
        about: JsonStatistics = {}
        if codec:
            check_size(shape, codec)
            about = {"video.height": shape[0], "video.width": shape[1], "video.codec": codec}
            about |= {"video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": fps, "video.channels": 3}
            about |= {"has_audio": False}
        axes = ["height", "width", "channels"]
        found[key] = Feature("video" if codec else "image", shape, axes, about)
    numbers = {ACTION: episode.actions} | ({} if episode.states is None else {STATE: episode.states})
    for name, values in reversed(numbers.items()):
        dim = np.shape(values)[1]
        if names[name] and len(names[name]) != dim:
            raise ValueError(f"there are {len(names[name])} names for the {dim} numbers of {name}: name each")
        found[name] = Feature("float32", (dim,), list(names[name]) or None)
    if episode.success is not None:
        found[SUCCESS] = Feature("bool", (1,))
    return found | COUNTERS
