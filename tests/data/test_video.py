"""Frames of videos whose images lean on those of other groups: every one is found, and damage is still refused."""

import weakref
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.robot_episodes import ramps

from vlm_vision.data.lerobot.video import VideoReader

LENGTH = 40
KINDS = {
    "hevc": ("libx265", {"x265-params": "log-level=none:keyint=8:min-keyint=8:bframes=3:b-adapt=0:scenecut=0"}),
    "h264": ("libx264", {"g": "8", "x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}),
    "h264 pyramid": (
        "libx264",
        {"g": "9", "x264-params": "open-gop=1:bframes=5:b-adapt=0:b-pyramid=normal:ref=6:scenecut=0"},
    ),
}


@pytest.fixture(params=KINDS)
def video(request, tmp_path: Path) -> Path:
    """Images that are decoded after a key frame and shown before it need those before the key frame."""
    encoder, options = KINDS[request.param]
    if encoder not in av.codecs_available:
        pytest.skip(f"PyAV here has no {encoder}")
    path = tmp_path / "open.mp4"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(encoder, Fraction(20), options=options)
        stream.pix_fmt, stream.height, stream.width = "yuv420p", 64, 64
        for image in ramps(64, LENGTH, 0):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    packets, keys = in_file(path)
    assert len(keys) > 2 and all(packets[i + 1].pts < packets[i].pts for i in keys[1:-1])
    return path


def in_file(path: Path) -> tuple[list[Any], list[int]]:
    """Packets, and places of those of key frames."""
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.pts is not None]
    return packets, [i for i, packet in enumerate(packets) if packet.is_keyframe]


def in_order(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def test_any_frame_is_that_of_reading_in_order(video: Path) -> None:
    wanted, whole = in_order(video), VideoReader(video)
    times = whole.times()
    assert len(wanted) == len(times) == LENGTH
    for i in [*np.random.default_rng(0).integers(0, LENGTH, 60), *range(LENGTH), *reversed(range(LENGTH))]:
        np.testing.assert_array_equal(whole.at(times[i], 1e-3), wanted[i])
    for i in range(LENGTH):  # the first that is asked for
        np.testing.assert_array_equal(VideoReader(video).at(times[i], 1e-3), wanted[i])


def test_damage_is_refused_and_does_no_harm_to_other_groups(video: Path) -> None:
    wanted, times = in_order(video), VideoReader(video).times()
    packets, keys = in_file(video)
    hurt = packets[keys[2]]
    data = bytearray(video.read_bytes())
    data[hurt.pos + 8 : hurt.pos + hurt.size] = np.random.default_rng(0).bytes(hurt.size - 8)
    video.write_bytes(data)
    shown = sorted(packet.pts for packet in packets)
    first, after = shown.index(hurt.pts), shown.index(packets[keys[3]].pts)
    whole = VideoReader(video)
    for i in range(first, after):
        with pytest.raises(ValueError, match="cannot be decoded"):
            whole.at(times[i], 1e-3)
    for i in [*range(shown.index(packets[keys[1]].pts)), *range(after, LENGTH)]:
        np.testing.assert_array_equal(whole.at(times[i], 1e-3), wanted[i])


def test_a_video_is_freed_where_it_is_let_go(video: Path) -> None:
    """And not when the collector runs, in a forked worker perhaps, where freeing a decoder is a crash."""
    whole = VideoReader(video)
    whole.at(0.5, 1e-3)
    with pytest.raises(ValueError, match="no frame"):
        whole.at(0.525, 1e-3)
    whole.at(0.5, 1e-3)
    kept = weakref.ref(whole)
    del whole
    assert kept() is None
