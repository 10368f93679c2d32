"""Images to bytes: PNG in the tables, or videos of many episodes each."""

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from vlm_vision.data.lerobot.layout import VIDEO_PATH, next_place

CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "8"}),
    "h264": ("libx264", {"g": "2", "crf": "23", "preset": "veryfast", "bf": "0"}),
}
"""Name -> encoder and its options. Every second frame is a key frame, as in LeRobot; LeRobot's preset of AV1, 12, is lossier."""

_LEAST = {"av1": 64, "h264": 2}
"""Least pixels of a side; with fewer, some builds of SVT-AV1 crash."""


def checked_codec(codec: str) -> str:
    """Raise ValueError for a codec that is unknown, or that this PyAV cannot write."""
    if codec not in CODECS:
        raise ValueError(f"codec {codec!r} is unknown: expected one of {', '.join(CODECS)}")
    if CODECS[codec][0] not in av.codecs_available:
        others = [name for name, (encoder, _) in CODECS.items() if encoder in av.codecs_available]
        raise ValueError(
            f"this PyAV has no {CODECS[codec][0]} to write {codec}: use {' or '.join(others) or 'PNG, video=False'}"
        )
    return codec


def check_size(shape: tuple[int, ...], codec: str) -> None:
    """Raise ValueError for images (H, W, 3) that the codec cannot encode."""
    if min(shape[:2]) < _LEAST[codec] or any(side % 2 for side in shape[:2]):
        raise ValueError(
            f"images of {shape[0]} x {shape[1]} cannot be encoded as {codec}, which needs even sides of at least "
            f"{_LEAST[codec]}: use PNG (video=False, --png)"
            + (" or H.264 (codec='h264', --codec h264)" if codec == "av1" else "")
        )


def png(image: np.ndarray) -> bytes:
    """PNG of one uint8 (H, W, 3); lossless."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def write_clip(path: Path, images: Iterable[np.ndarray], fps: Fraction, codec: str) -> None:
    """A video of uint8 (H, W, 3) images of one size, yuv420p.

    Raises:
        ValueError: the encoder failed.
    """
    encoder, options = CODECS[codec]
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 tells its settings on standard error otherwise
    try:
        with av.open(str(path), "w") as file:
            stream: Any = None
            for image in images:
                if stream is None:
                    stream = file.add_stream(encoder, fps, options=options)
                    stream.pix_fmt, (stream.height, stream.width) = "yuv420p", image.shape[:2]
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(stream.encode())
    except FFmpegError as error:
        raise ValueError(f"{encoder} failed to write a video ({error}): use another codec, or video=False") from None


@dataclass(frozen=True)
class ClipPlace:
    """Location of an episode's clip; start and end in seconds."""

    chunk: int
    file: int
    start: float
    end: float


class VideoFiles:
    """The videos of one feature. Clips are joined without encoding them again; a new file begins before one gets too large.

    Args:
        limit: most bytes of a file.
        chunks_size: files of a folder.
    """

    def __init__(self, folder: Path, key: str, fps: Fraction, *, limit: float, chunks_size: int):
        self.folder, self.key, self.fps, self.limit, self.chunks_size = folder, key, fps, limit, chunks_size
        self._chunk, self._file = 0, 0
        self._frames, self._bytes = 0, 0
        self._out: Any = None
        self._stream: Any = None

    def add(self, clip: Path) -> ClipPlace:
        """Append a clip that `write_clip` wrote."""
        size = clip.stat().st_size
        if self._out is not None and self._bytes + size > self.limit:
            self.close()
            self._chunk, self._file = next_place(self._chunk, self._file, self.chunks_size)
        first = self._frames
        with av.open(str(clip)) as source:
            origin: Any = source.streams.video[0]
            if self._out is None:
                self._out, self._stream = self._begun(origin)
            shift = round(first / self.fps / origin.time_base)
            for packet in source.demux(origin):
                if packet.dts is None:  # the end
                    continue
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = self._stream
                self._out.mux(packet)
                self._frames += 1
        self._bytes += size
        return ClipPlace(self._chunk, self._file, float(first / self.fps), float(self._frames / self.fps))

    def _begun(self, origin: Any) -> tuple[Any, Any]:
        places = {"chunk_index": self._chunk, "file_index": self._file}
        path = self.folder / VIDEO_PATH.format(video_key=self.key, **places)
        path.parent.mkdir(parents=True, exist_ok=True)
        out: Any = av.open(str(path), "w", options={"movflags": "faststart"})
        stream = out.add_stream_from_template(origin, opaque=True)
        stream.time_base = origin.time_base
        return out, stream

    def close(self) -> None:
        """Finish the file."""
        if self._out is not None:
            self._out.close()
        self._out, self._frames, self._bytes = None, 0, 0
