"""LeRobotDataset v3: every camera, every n-th frame, each video decoded once in order."""

from collections import Counter

import numpy as np
import pytest
from support.robot_episodes import LENGTHS, some_episodes
from support.sources import keys, opened

pytest.importorskip("av")
from vlm_vision.data.lerobot import read_dataset, video, write_dataset  # noqa: E402
from vlm_vision.data.shards.fetch import UnreachableError  # noqa: E402


@pytest.fixture(scope="module", params=[True, False], ids=["video", "png"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("robot") / "data"
    write_dataset(path, some_episodes(), fps=10, codec="h264", video=request.param)
    return path


def names(every=1, cameras=("top", "wrist"), episodes=range(4)):
    return [f"{e}/{step}/{camera}" for e in episodes for camera in cameras for step in range(0, LENGTHS[e], every)]


def test_episode_then_camera_then_frame(folder):
    source = opened(folder)
    items = list(source.items())
    assert [one.key for one in items] == names()
    assert [one.caption for one in items] == [f"task {int(one.key[0]) % 2}" for one in items]
    data = read_dataset(folder)
    for first, last in ((0, len(items)), (7, 20), (len(items) - 1, len(items))):
        for item, image in zip(items[first:last], source.images(items[first:last]), strict=True):
            episode, step, camera = item.key.split("/")
            expected = data.episode(int(episode)).images[camera][int(step)]
            assert np.array_equal(image, expected), item.key
    source.check()


def test_options_choose_frames_cameras_and_episodes(folder):
    assert keys(opened(folder, every=3)) == names(3)
    assert keys(opened(folder, cameras=("wrist",), episodes=(2, 0))) == names(1, ("wrist",), (0, 2))
    assert keys(opened(folder, cameras=("observation.images.wrist",))) == names(1, ("wrist",))
    with pytest.raises(ValueError, match="has no camera 'left': it has 'top', 'wrist'"):
        keys(opened(folder, cameras=("left",)))
    with pytest.raises(ValueError, match="has no episode 9: it has 4, from 0 to 3"):
        keys(opened(folder, episodes=(9,)))
    with pytest.raises(ValueError, match="--revision is for data sets on the hub: .*data is robot data"):
        opened(folder, revision="main")


def test_each_video_is_opened_once_and_searched_once(tmp_path, monkeypatch):
    write_dataset(tmp_path / "x", some_episodes(), fps=10, codec="h264")
    source = opened(tmp_path / "x", every=2)
    items = list(source.items())
    opens, seeks = Counter(), Counter()

    class Counting(video.VideoReader):
        def __init__(self, path, **settings):
            opens[path] += 1
            super().__init__(path, **settings)

        def _sought(self, *args, **settings):
            seeks[self.path] += 1
            return super()._sought(*args, **settings)

    monkeypatch.setattr(video, "VideoReader", Counting)
    assert not [one for one in source.images(items) if isinstance(one, ValueError)]
    assert list(opens.values()) == [1, 1] and list(seeks.values()) == [1, 1]


def test_a_damaged_video_is_an_error_of_its_frames(tmp_path):
    write_dataset(tmp_path / "x", some_episodes(2), fps=10, codec="h264")
    source = opened(tmp_path / "x")
    items = list(source.items())
    path = next((tmp_path / "x/videos/observation.images.top").rglob("*.mp4"))
    path.write_bytes(path.read_bytes()[:2000])
    found = list(source.images(items))
    bad = {item.key.split("/")[2] for item, one in zip(items, found, strict=True) if isinstance(one, ValueError)}
    first = next(number for number, one in enumerate(found) if isinstance(one, ValueError))
    assert bad == {"top"} and f"frame {items[first].key.split('/')[1]}, camera top: " in str(found[first])
    (tmp_path / "x").rename(tmp_path / "y")
    with pytest.raises(UnreachableError, match="x is gone"):
        source.check()


def test_a_hub_id_of_robot_data_is_fetched(folder, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda source, name, **_: asked.append((source, name)))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda source, **settings: str(folder))
    assert keys(opened("someone/robot", every=4, revision="v3.0")) == names(4)
    assert asked == [("someone/robot", "meta/info.json")]
    assert keys(opened("someone/robot", episodes=(1,))) == names(1, episodes=[1]) and len(asked) == 1
    opened("someone/robot").check()
