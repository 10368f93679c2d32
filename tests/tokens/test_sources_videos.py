"""Frames of videos by number, in the order of showing."""

import struct

import numpy as np
import pytest
from support.sources import grays, keys, opened, png, put

av = pytest.importorskip("av")
FORMS = {
    "b.mp4": ("libx264", {"bf": "3", "g": "12"}),
    "open.mp4": ("libx264", {"bf": "3", "g": "12", "x264-params": "open-gop=1:b-adapt=0"}),
    "b.mkv": ("libx264", {"bf": "3", "g": "12"}),
    "b.mov": ("libx264", {"bf": "3", "g": "12"}),
    "v.webm": ("libvpx-vp9", {"g": "12"}),
    "b.avi": ("libx264", {"bf": "3", "g": "12"}),
    "m.avi": ("mpeg4", {"bf": "2", "g": "12", "b": "8M", "qmax": "2"}),
}
LENGTH = 30


def write_video(path, length=LENGTH):
    """Frame i has the gray value 8 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, options = FORMS[path.name] if path.name in FORMS else FORMS["b.mp4"]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, 10, options=options)
        stream.pix_fmt, stream.width, stream.height = "yuv420p", 64, 64
        for number in range(length):
            image = np.full((64, 64, 3), 8 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    return path


def numbers(found):
    """Frame numbers by their gray values."""
    assert all(isinstance(one, int) for one in found), found
    return [round(one / 8) for one in found]


@pytest.mark.parametrize("name", FORMS)
def test_frames_have_their_number_in_the_order_of_showing(tmp_path, name):
    source = opened(write_video(tmp_path / name))
    assert keys(source) == [f"{name}/{number}" for number in range(LENGTH)]
    assert numbers(grays(source)) == list(range(LENGTH))
    items = list(source.items())
    for start in range(0, LENGTH, 3):
        assert numbers(grays(source, items[start : start + 4])) == list(range(start, min(start + 4, LENGTH)))


@pytest.mark.parametrize("every", [7, 11, 13])
@pytest.mark.parametrize("name", FORMS)
def test_every_nth_frame(tmp_path, name, every):
    source = opened(write_video(tmp_path / name), every=every)
    expected = list(range(0, LENGTH, every))
    assert keys(source) == [f"{name}/{number}" for number in expected]
    assert numbers(grays(source)) == expected
    assert numbers(grays(source, list(source.items())[1:3])) == expected[1:3]


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "v.webm"])
def test_groups_of_frames_without_an_image_are_not_decoded(tmp_path, name, monkeypatch):
    from vlm_vision.data.lerobot import video

    source = opened(write_video(tmp_path / name), every=26)
    needed, count = video._needed, []

    def counting(*settings):
        for one in needed(*settings):
            count.append(one)
            yield one

    monkeypatch.setattr(video, "_needed", counting)
    assert numbers(grays(source)) == [0, 26]
    assert len(count) < 12


def test_videos_of_phones_are_turned_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :16] = 255
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", 10)
        stream.pix_fmt, stream.width, stream.height = "yuv420p", 64, 32
        file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # the 3 x 3 matrix of the track, here a quarter turn clockwise
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(data)
    source = opened(path)
    (shown,) = source.images(list(source.items()))
    assert isinstance(shown, np.ndarray) and shown.shape == (64, 32, 3)
    assert shown[:12].min() > 240 and shown[20:].max() < 15


def test_a_video_is_opened_once_and_searched_once_for_a_call(tmp_path, monkeypatch):
    from vlm_vision.data.lerobot import video

    source = opened(write_video(tmp_path / "b.mp4"), every=3)
    items = list(source.items())
    opens, decoded = [], []

    class Counting(video.VideoReader):
        def __init__(self, *args, **settings):
            opens.append(args)
            super().__init__(*args, **settings)

        def _sought(self, *args, **settings):
            decoded.append(args)
            return super()._sought(*args, **settings)

    monkeypatch.setattr(video, "VideoReader", Counting)
    assert numbers(grays(source, items[2:])) == list(range(6, LENGTH, 3))
    assert len(opens) == 1 and len(decoded) == 1


def test_a_folder_gives_images_and_videos(tmp_path):
    put(tmp_path / "x/a.png", png(3))
    write_video(tmp_path / "x/b/b.mp4", 3)
    put(tmp_path / "x/c.png", png(5))
    source = opened(tmp_path / "x", every=2)
    assert keys(source) == ["a.png", "b/b.mp4/0", "b/b.mp4/2", "c.png"]
    assert grays(source) == [3, 0, 16, 5]
    source.check()


def test_a_video_that_cannot_be_listed_is_a_bad_image(tmp_path):
    whole = write_video(tmp_path / "x/b.mp4").read_bytes()
    put(tmp_path / "x/a.mp4", whole[: len(whole) // 2])
    put(tmp_path / "x/c.avi", b"no video")
    source = opened(tmp_path / "x")
    listed = keys(source)
    assert (listed[0], listed[1], listed[-1]) == ("a.mp4", "b.mp4/0", "c.avi") and len(listed) == LENGTH + 2
    found = grays(source)
    assert "a.mp4 cannot be decoded" in str(found[0]) and "c.avi cannot be decoded" in str(found[-1])
    assert numbers(found[1:-1]) == list(range(LENGTH))


def test_damage_inside_a_video_is_an_error_of_its_frames(tmp_path):
    path = write_video(tmp_path / "b.mp4")
    with av.open(str(path)) as file:
        packets = [(packet.pos, packet.size, packet.pts) for packet in file.demux(video=0) if packet.size]
    place, size, _ = packets[15]
    data = bytearray(path.read_bytes())
    data[place + 4 : place + size] = bytes(size - 4)
    path.write_bytes(data)
    found = grays(opened(path))
    bad = [number for number, one in enumerate(found) if isinstance(one, str)]
    assert bad and all(12 <= number < 24 for number in bad), bad
    assert all(round(one / 8) == number for number, one in enumerate(found) if isinstance(one, int))
