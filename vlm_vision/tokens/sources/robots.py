"""LeRobotDataset v3: every n-th frame of every camera, each video decoded once, in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm_vision.tokens.source import Item, Opened
from vlm_vision.tokens.sources.places import check_place


@dataclass(frozen=True)
class Robots:
    """The images of a robot data set by episode, then by camera, then by frame; a key is `episode/frame/camera`.

    The caption is the instruction at that frame. Of a hub id the files of the chosen episodes and cameras are fetched.

    Args:
        local: whether it is a folder on this machine.
        cameras: names of the cameras; all if empty.
        episodes: numbers of the episodes; all if empty.
        every: distance of the frames, from the first of each episode on.
    """

    source: str
    local: bool
    cameras: tuple[str, ...] = ()
    episodes: tuple[int, ...] = ()
    every: int = 1
    revision: str | None = None

    @cached_property
    def _data(self) -> Any:
        try:
            from vlm_vision.data.lerobot.layout import camera_name
            from vlm_vision.data.lerobot.reader import read_dataset
        except ImportError as error:
            raise ImportError(
                f"robot data is read with pyarrow and PyAV ({error}): pip install 'vlm-vision[robot]'"
            ) from None
        chosen = {camera_name(camera): camera for camera in self.cameras} or None
        data = read_dataset(
            self.source, episodes=self.episodes or None, cameras=chosen, revision=self.revision, memory=0
        )
        if not data.cameras:
            raise ValueError(f"{self.source} has no camera: expected images or videos")
        return data

    def items(self) -> Iterator[Item]:
        data, start = self._data, 0
        tasks = data.column("task_index")[:, 0]
        for episode in data.episodes:
            for camera in sorted(data.cameras, key=str.encode):
                for step in range(0, episode.length, self.every):
                    caption = data.tasks[int(tasks[start + step])]
                    yield Item(f"{episode.index}/{step}/{camera}", camera, start + step, caption=caption)
            start += episode.length

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        data = self._data
        from vlm_vision.data.lerobot.video import VideoReaders

        videos = VideoReaders(2 * len(data.cameras), in_order=True)
        try:
            for item in items:
                try:
                    image = data.image(item.start, item.place, videos)
                except ValueError as error:
                    image = ValueError(str(error))
                yield image
        finally:
            videos.close()

    def check(self) -> None:
        check_place(str(Path(self.source).expanduser() if self.local else self._data.folder), folder=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_data"}
