"""Videos of episodes."""

from collections import Counter
from pathlib import Path
from typing import Self

import av
import numpy as np

from vlm_vision.sim.environment import Environment
from vlm_vision.sim.outcomes import Outcome


class VideoWriter:
    """An mp4 file, H.264 in yuv420p, that every browser plays.

    Args:
        fps: frames in a second.

    Raises:
        ValueError: frames that are not uint8 (height, width, 3) with even sides, all of one size.
    """

    def __init__(self, file: str | Path, fps: float):
        self._file = av.open(str(file), "w", format="mp4")
        self._stream = self._file.add_stream("libx264", rate=round(fps), options={"crf": "20"})
        self._stream.pix_fmt = "yuv420p"
        self._shape: tuple[int, ...] = ()

    def add(self, frame: np.ndarray) -> None:
        """The next image, RGB."""
        if not self._shape:
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.shape[0] % 2 or frame.shape[1] % 2:
                raise ValueError(
                    f"a frame has shape {frame.shape}: expected (height, width, 3), with even sides for yuv420p"
                )
            self._shape = frame.shape
            self._stream.height, self._stream.width = frame.shape[:2]
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(
                f"a frame is {frame.dtype} of shape {frame.shape}: expected uint8 {self._shape}, as the first one"
            )
        self._file.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def close(self) -> None:
        """Write the rest."""
        if self._shape:
            self._file.mux(self._stream.encode(None))
        self._file.close()


class EpisodeVideos:
    """Recorder of a rollout: the first episodes of each task as mp4, and the last frame of each.

    Used as a context manager: unfinished episodes are deleted at its end.

    Args:
        folder: for the files, named task-seed-done.mp4 or task-seed-failed.mp4.
        per_task: episodes.
        side: of the frames, in pixels.
        every: steps from frame to frame; time in the video is the robot's.
    """

    def __init__(self, folder: str | Path, *, per_task: int = 1, side: int = 256, every: int = 2):
        self.folder, self.per_task, self.side, self.every = Path(folder), per_task, side, every
        self.ends: list[tuple[Outcome, np.ndarray]] = []
        self._begun: Counter[str] = Counter()
        self._open: dict[tuple[str, int], VideoWriter] = {}

    def __call__(self, environment: Environment, outcome: Outcome, over: bool) -> None:
        trial = outcome.trial
        place = (trial.task, trial.seed)
        name, file = f"{_plain(trial.task)}-{trial.seed}", self._file(*place)
        if not outcome.steps and self._begun[trial.task] < self.per_task:
            self._begun[trial.task] += 1
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open[place] = VideoWriter(file, environment.fps / self.every)
        if place not in self._open or (outcome.steps % self.every and not over):
            return
        frame = environment.frame(self.side, self.side)
        self._open[place].add(frame)
        if over:
            self._open.pop(place).close()
            for end in ("done", "failed"):  # of a run before
                (self.folder / f"{name}-{end}.mp4").unlink(missing_ok=True)
            file.rename(self.folder / f"{name}-{'done' if outcome.success else 'failed'}.mp4")
            self.ends.append((outcome, frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for place, video in self._open.items():
            video.close()
            self._file(*place).unlink()
        self._open.clear()

    def _file(self, task: str, seed: int) -> Path:
        """Of an episode under way."""
        return self.folder / f".{_plain(task)}-{seed}.mp4"


def _plain(task: str) -> str:
    return task.replace("/", "-")
