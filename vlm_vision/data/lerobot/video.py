"""Images of videos by time, in any order, fastest in order of time.

Videos are decoded on one thread: frames of robots are small, there are many workers, and a decoder without threads survives a fork.
"""

import math
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

_SEEK = 2
"""Cost of a seek, in decoded frames."""


class VideoReader:
    """An open video.

    Args:
        in_order: read on to a later image instead of seeking, for images read in order of time: one seek at the first, then none.
            Groups of frames, from a key frame to the next, without such an image are not decoded. It needs no index of frames, so
            that it reads every container.

    Raises:
        ValueError: no such file, or a video that cannot be decoded.
    """

    def __init__(self, path: str | os.PathLike[str], *, in_order: bool = False):
        self.path, self.in_order = os.fspath(path), in_order
        try:
            self._container = av.open(self.path)
            if not self._container.streams.video:
                raise ValueError("it has no images")
            self._stream = self._container.streams.video[0]
            if self._stream.codec_context is None:
                raise ValueError("FFmpeg does not know its codec")
            self._stream.codec_context.options = {"err_detect": "explode"}  # damage is an error, not a smear
            self._stream.thread_count = 1
            entries = self._stream.index_entries
            self._times = [entry.timestamp for entry in entries]
            self._keys = [i for i, entry in enumerate(entries) if entry.is_keyframe]
            if self._stream.time_base is None or not (self._times or in_order):
                raise ValueError("it has no index of frames")
        except (OSError, ValueError, FFmpegError) as error:
            raise ValueError(_unreadable(self.path, error)) from None
        self._base = float(self._stream.time_base)
        self._frames: Any = None
        self._last: av.VideoFrame | None = None
        self._sought_tick = _Tick() if in_order else None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._times)

    def ticks(self) -> list[int]:
        """Times at which its frames are shown, in units of the video's clock, in order. All its packets are read, none decoded.

        Raises:
            ValueError: packets that cannot be read.
        """
        try:
            with av.open(self.path) as container:
                packets = (packet for packet in container.demux(video=0) if not packet.is_discard)
                return sorted(packet.pts for packet in packets if packet.pts is not None)
        except (OSError, ValueError, FFmpegError) as error:
            raise ValueError(_unreadable(self.path, error)) from None

    def times(self) -> list[float]:
        """Seconds at which each of its frames is shown. Raises ValueError as `ticks`."""
        return [tick * self._base for tick in self.ticks()]

    def at_tick(self, tick: int) -> np.ndarray:
        """The frame that is shown at one of `ticks`, as `at`, turned upright where the file states a rotation, as phones do."""
        image = self.at(tick * self._base, 0.4 * self._base)
        turns = self._last.rotation // 90 if self._last is not None else 0
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def at(self, seconds: float, tolerance: float) -> np.ndarray:
        """The frame that is shown at a time, uint8 (H, W, 3) RGB.

        Raises:
            ValueError: no frame within `tolerance` seconds of it, or one that cannot be decoded.
        """
        try:
            return self._near(seconds, tolerance).to_ndarray(format="rgb24")
        except (OSError, ValueError, FFmpegError) as error:
            self._frames = self._last = None
            raise ValueError(_unreadable(self.path, error)) from None

    def close(self) -> None:
        self._container.close()

    def _near(self, seconds: float, tolerance: float) -> av.VideoFrame:
        if not math.isfinite(seconds):
            raise ValueError(f"no frame is shown at {seconds} s")
        if self._last is not None and abs(self._last.time - seconds) <= tolerance:
            return self._last
        wanted = math.floor((seconds + tolerance) / self._base)
        if self._sought_tick is not None:
            self._sought_tick.value = wanted
        ways = [partial(self._sought, wanted, run_in=run_in) for run_in in (0, 1)]
        if self._goes_on(seconds):
            ways.insert(0, partial(iter, self._frames))
        while True:
            self._frames = ways.pop(0)()
            try:
                return self._next(seconds, tolerance)
            except FFmpegError:
                if not ways:
                    raise

    def _next(self, seconds: float, tolerance: float) -> av.VideoFrame:
        for frame in self._frames:
            self._last = frame
            if abs(frame.time - seconds) <= tolerance:
                if frame.is_corrupt:
                    raise ValueError(f"the frame at {frame.time:.4f} s is damaged")
                return frame
            if frame.time > seconds:
                raise ValueError(
                    f"no frame within {tolerance:.4f} s of {seconds:.4f} s, the next is at {frame.time:.4f} s"
                )
        last = f", the last is at {self._last.time:.4f} s" if self._last else ""
        raise ValueError(f"no frame at {seconds:.4f} s{last}")

    def _sought(self, wanted: int, *, run_in: int) -> Iterator[Any]:
        """Frames from the last key frame shown at `wanted` or before.

        A seek goes by decoding time, and images that lead a key frame (decoded after it, shown before it) need the previous
        key frame.

        Args:
            run_in: 1 to begin one key frame earlier: in H.264 an image may release one older than the key frame, an error if that
                was not decoded.
        """
        key = self._first(wanted)
        while key.pts > wanted and _decoding_time(earlier := self._first(_decoding_time(key) - 1)) < _decoding_time(
            key
        ):
            key = earlier
        if run_in:
            self._container.seek(_decoding_time(key) - run_in, stream=self._stream)
            return _frames_from(key, self._container.demux(self._stream), self._sought_tick)
        return _frames_from(key, chain([key], self._container.demux(self._stream)), self._sought_tick)

    def _first(self, sought: int) -> Any:
        """The packet of the last key frame decoded at `sought` or before."""
        self._container.seek(sought, stream=self._stream)
        packet = next(self._container.demux(self._stream))
        if packet.pts is None:
            raise ValueError(f"no frame can be read from {sought * self._base:.4f} s on")
        return packet

    def _goes_on(self, seconds: float) -> bool:
        """Whether to continue to decode instead of seeking."""
        if self._last is None or self._frames is None or self._last.time > seconds:
            return False
        if self.in_order:
            return True
        here, there = (bisect_right(self._times, round(time / self._base)) for time in (self._last.time, seconds))
        key = self._keys[max(bisect_right(self._keys, there - 1) - 1, 0)] if self._keys else 0
        return there - here <= there - key + _SEEK


@dataclass
class _Tick:
    """Time of the image that is read next, in units of the video's clock."""

    value: int = 0


def _frames_from(key: Any, packets: Iterator[Any], sought: _Tick | None) -> Iterator[Any]:
    """Frames decoded from a key frame on and shown no earlier; missing references of other frames are no damage.

    Holds no `VideoReader`: in a reference cycle it would be freed by the garbage collector, perhaps in a forked process.
    """
    for start, packet in _needed(key, packets, sought) if sought else ((key, packet) for packet in packets):
        matters = packet.dts is None or (packet.dts >= _decoding_time(start) and packet.pts >= start.pts)
        try:
            frames = packet.decode()
        except FFmpegError:
            if matters:
                raise
            continue
        yield from (frame for frame in frames if frame.pts is not None and frame.pts >= start.pts)


def _needed(key: Any, packets: Iterator[Any], sought: _Tick) -> Iterator[tuple[Any, Any]]:
    """Packets to decode, each with the key frame that decoding began at.

    Of the packets before `sought` only those from the last key frame shown before it on: the frames shown after a key frame need
    none that is decoded before it. A packet decoded after `sought` ends the search, as none is shown before it is decoded.
    """
    held, is_gap = [], False
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None and key.pts < packet.pts <= sought.value:
            is_gap = is_gap or bool(held)
            held = []
        held.append(packet)
        if packet.dts is None or packet.dts > sought.value:
            if is_gap:
                key, is_gap = held[0], False
                packet.stream.codec_context.flush_buffers()
            yield from ((key, one) for one in held)
            held = []


def _decoding_time(packet: Any) -> int:
    """Time at which a packet is decoded; that at which it is shown where the container states none, as Matroska."""
    return packet.pts if packet.dts is None else packet.dts


class VideoReaders:
    """Videos that are opened at first access; the last `limit` stay open, separately in each process.

    Args:
        in_order: as of `VideoReader`.
    """

    def __init__(self, limit: int = 16, *, in_order: bool = False):
        self.limit, self.in_order = limit, in_order
        self._open: OrderedDict[Path, VideoReader] = OrderedDict()
        self._process = os.getpid()
        self._inherited: list[Any] = []

    def at(self, path: Path, seconds: float, tolerance: float) -> np.ndarray:
        """As `VideoReader.at`."""
        if self._process != os.getpid():  # after a fork the files' positions are shared with the parent
            self._inherited.append(self._open)
            self._open, self._process = OrderedDict(), os.getpid()
        if path not in self._open:
            self._open[path] = VideoReader(path, in_order=self.in_order)
            if len(self._open) > self.limit:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        try:
            return self._open[path].at(seconds, tolerance)
        except ValueError:
            self._open.pop(path).close()
            raise

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._open.popitem()[1].close()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), in_order=self.in_order), (self.limit,)


def _unreadable(path: str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError | FFmpegError) and error.strerror else str(error)
    return f"{path} cannot be decoded ({' '.join(str(reason).split())})"
