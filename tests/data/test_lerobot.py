"""LeRobotDataset v3: what is written is read, by moment, window and episode, in any number of files and processes."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.processes import fresh_context
from support.robot_episodes import LENGTHS, ramps, some_episodes
from torch.utils.data import DataLoader

from vlm_vision.data.lerobot import RobotDataset, read_dataset, write_dataset
from vlm_vision.data.lerobot.layout import Feature, camera_key
from vlm_vision.data.lerobot.statistics import QUANTILES
from vlm_vision.data.lerobot.video import VideoReader
from vlm_vision.robot.episode import Episode
from vlm_vision.robot.statistics import Statistics
from vlm_vision.vla.recordings import Recordings

KINDS = {"png": dict(video=False), "av1": {}, "h264": dict(codec="h264")}
ROLLED = dict(chunks_size=2, data_files_size_in_mb=0.001, video_files_size_in_mb=0.0015)
LEAST_PSNR = 32.0
"""dB of a video, of smooth images."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("rolled", [False, True], ids=["one_file", "many_files"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(tmp_path, kind: str, rolled: bool) -> None:
    episodes = some_episodes(top=96)
    info = write_dataset(tmp_path / "set", episodes, fps=20, **KINDS[kind], **(ROLLED if rolled else {}))
    dataset = read_dataset(tmp_path / "set")
    assert (info.total_episodes, info.total_frames, info.total_tasks) == (4, sum(LENGTHS), 2)
    assert len(dataset) == sum(LENGTHS) and [one.length for one in dataset.episodes] == list(LENGTHS)
    assert dataset.cameras == ("top", "wrist") and dataset.fps == 20 and dataset.tasks == {0: "task 0", 1: "task 1"}
    files = {path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("file-*")}
    assert ("data/chunk-001/file-001.parquet" in files) == rolled
    assert any("videos" in name and "chunk-001" in name for name in files) == (rolled and kind != "png")
    for number, given in enumerate(episodes):
        found = dataset.episode(number)
        assert (found.task, found.success) == (given.task, given.success)
        np.testing.assert_array_equal(found.actions, given.actions.astype(np.float32))
        np.testing.assert_array_equal(found.states, given.states.astype(np.float32))
        for camera, images in given.images.items():
            read = np.stack(list(found.images[camera]))
            assert read.dtype == np.uint8 and read.shape == np.shape(images)
            if kind == "png":
                np.testing.assert_array_equal(read, images)
            else:  # each by itself, so that a neighbor in its place would show
                assert min(psnr(a, b) for a, b in zip(read, images, strict=True)) > LEAST_PSNR
                assert len(read) == 1 or max(psnr(a, b) for a, b in zip(read[1:], images[:-1], strict=True)) < 30


def test_episodes_that_were_read_can_be_written_again(tmp_path) -> None:
    write_dataset(tmp_path / "a", some_episodes(states=False, success=False), fps=10, video=False)
    first = read_dataset(tmp_path / "a")
    write_dataset(tmp_path / "b", (first.episode(i) for i in (2, 0)), fps=10, video=False)
    second = read_dataset(tmp_path / "b")
    assert [one.length for one in second.episodes] == [LENGTHS[2], LENGTHS[0]] and second.episode(1).states is None
    np.testing.assert_array_equal(second.image(3, "wrist"), first.image(LENGTHS[0] + LENGTHS[1] + 3, "wrist"))
    assert second.episode(0).success is None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> RobotDataset:
    folder = tmp_path_factory.mktemp("robot") / "set"
    write_dataset(folder, some_episodes(), fps=20, action_names=("x", "y", "z", "grip"), **ROLLED)
    return read_dataset(folder)


def test_windows_repeat_the_last_action_and_say_so(dataset: RobotDataset) -> None:
    given = some_episodes()
    index = 0
    for number, episode in enumerate(given):
        actions = episode.actions.astype(np.float32)
        for step in range(len(episode)):
            window = dataset.window(index, chunk=4)
            assert (window.episode, window.step) == (number, step)
            wanted = [actions[min(step + ahead, len(episode) - 1)] for ahead in range(4)]
            np.testing.assert_array_equal(window.actions, wanted)
            np.testing.assert_array_equal(window.padded, [step + ahead >= len(episode) for ahead in range(4)])
            np.testing.assert_array_equal(window.observation.state, episode.states[step].astype(np.float32))
            assert window.observation.instruction == episode.task and set(window.observation.images) == {"top", "wrist"}
            index += 1
    assert dataset.action_names == ("x", "y", "z", "grip")
    with pytest.raises(ValueError, match="chunk is 0: expected 1"):
        dataset.window(0, chunk=0)
    with pytest.raises(IndexError):
        dataset.window(len(dataset), chunk=1)


@pytest.mark.parametrize("channels", ["channel", "channels"])
def test_images_that_are_told_channels_first_are_read(dataset: RobotDataset, tmp_path, channels: str) -> None:
    folder = shutil.copytree(dataset.folder, tmp_path / "set")
    told = json.loads((folder / "meta/info.json").read_text())
    told["features"][camera_key("top")] |= {"shape": [3, 64, 64], "names": [channels, "height", "width"]}
    (folder / "meta/info.json").write_text(json.dumps(told))
    found = read_dataset(folder)
    np.testing.assert_array_equal(found.image(3, "top"), dataset.image(3, "top"))
    feature = found.features[camera_key("top")]
    assert feature.shape == (64, 64, 3) and feature.names == ["height", "width", channels]


@pytest.mark.parametrize(
    ("names", "flat"),
    [
        (["x", "y", "z", "grip"], ("x", "y", "z", "grip")),
        ([["x", "y", "z", "grip"]], ("x", "y", "z", "grip")),
        ({"motors": ["x", "y", "z", "grip"]}, ("x", "y", "z", "grip")),
        ({"left": ["x", "y"], "right": ["z", "grip"]}, ("x", "y", "z", "grip")),
        ({"grip": 3, "x": 0, "y": 1, "z": 2}, ("x", "y", "z", "grip")),
        (["arm"], ()),
        ("arm", ()),
        ({"motors": None}, ()),
        (None, ()),
    ],
)
def test_names_in_any_nesting_are_one_for_each_number_or_none(names, flat: tuple[str, ...]) -> None:
    assert Feature("float32", (4,), names).flat_names == flat


def test_random_access_equals_reading_in_order(dataset: RobotDataset) -> None:
    in_order = [dataset.image(i, "top") for i in range(len(dataset))]
    for i in np.random.default_rng(0).integers(0, len(dataset), 60):
        np.testing.assert_array_equal(dataset.image(int(i), "top"), in_order[i])


def test_few_videos_stay_open(dataset: RobotDataset) -> None:
    again = pickle.loads(pickle.dumps(dataset))
    again._videos.limit = 1
    for i in (0, 13, 1, 14, 2):
        for camera in again.cameras:
            np.testing.assert_array_equal(again.image(i, camera), dataset.image(i, camera))
    assert len(again._videos._open) == 1


def test_chosen_episodes_and_cameras_by_other_names(dataset: RobotDataset) -> None:
    part = read_dataset(dataset.folder, episodes=[2, 1], cameras={"hand": "wrist", "front": "observation.images.top"})
    assert [one.index for one in part.episodes] == [1, 2] and len(part) == LENGTHS[1] + LENGTHS[2]
    window, wanted = part.window(3, chunk=2), dataset.window(LENGTHS[0] + 3, chunk=2)
    assert set(window.observation.images) == {"hand", "front"}
    np.testing.assert_array_equal(window.observation.images["hand"], wanted.observation.images["wrist"])
    np.testing.assert_array_equal(window.observation.images["front"], wanted.observation.images["top"])
    np.testing.assert_array_equal(window.actions, wanted.actions)
    with pytest.raises(ValueError, match="has no camera 'side': it has 'top', 'wrist'"):
        read_dataset(dataset.folder, cameras={"front": "side"})
    with pytest.raises(ValueError, match="has no episode 7: it has 4, from 0 to 3"):
        read_dataset(dataset.folder, episodes=[0, 7])


def test_of_a_hub_id_only_the_files_that_are_wanted_are_fetched(dataset: RobotDataset, monkeypatch) -> None:
    asked = []

    def fetch(source: str, *, repo_type: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((source, repo_type, revision, sorted(allow_patterns)))
        return str(dataset.folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    part = read_dataset("owner/name", episodes=[3], cameras={"top": "top"}, revision="v3.0")
    np.testing.assert_array_equal(part.image(0, "top"), dataset.image(len(dataset) - 1, "top"))
    files = [dataset.episodes[3].file, dataset.episodes[3].clips[camera_key("top")].file]
    names = [file.relative_to(dataset.folder).as_posix() for file in files]
    assert asked == [("owner/name", "dataset", "v3.0", one) for one in (["meta/*"], sorted(["meta/*", *names]))]


def collate(windows: list) -> dict[str, torch.Tensor]:
    images = [np.stack(list(window.observation.images.values())) for window in windows]
    return {
        "images": torch.from_numpy(np.stack(images)),
        "actions": torch.from_numpy(np.stack([window.actions for window in windows])),
    }


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_two_workers_equal_none(dataset: RobotDataset, start: str) -> None:
    dataset.image(0, "top")  # a video is open before the workers start
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    windows = Recordings({"mine": dataset}, chunk=3)

    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        context = fresh_context() if start == "forkserver" else start
        how = {"multiprocessing_context": context} if workers else {}
        return list(DataLoader(windows, batch_size=4, sampler=order, num_workers=workers, collate_fn=collate, **how))

    for alone, together in zip(batches(0), batches(2), strict=True):
        for name in alone:
            assert torch.equal(alone[name], together[name])


def test_statistics_are_those_of_all_rows_and_pixels(tmp_path) -> None:
    episodes = some_episodes()
    write_dataset(tmp_path / "set", episodes, fps=20, video=False, data_files_size_in_mb=0.001)
    dataset = read_dataset(tmp_path / "set")
    wanted = Statistics.of(np.concatenate([one.actions for one in episodes]).astype(np.float32))
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        np.testing.assert_allclose(getattr(dataset.statistics["action"], name), getattr(wanted, name), rtol=1e-12)
    assert dataset.statistics["action"].count == sum(LENGTHS) and "observation.state" in dataset.statistics

    told = json.loads((tmp_path / "set/meta/stats.json").read_text())
    assert all(set(one) == {"min", "max", "mean", "std", "count", *QUANTILES} for one in told.values())
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    cases = [(told, np.concatenate([one.images["top"] for one in episodes]))]
    cases += [
        ({camera_key("top"): _stats(row, camera_key("top"))}, episodes[i].images["top"]) for i, row in enumerate(rows)
    ]
    for found, images in cases:
        values = np.asarray(images).reshape(-1, 3) / 255
        measures = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        measures |= {name: np.quantile(values, q, axis=0) for name, q in QUANTILES.items()}
        for name, value in measures.items():
            given = np.array(found[camera_key("top")][name])
            assert given.shape == (3, 1, 1)
            np.testing.assert_allclose(given.ravel(), value, atol=1e-12, err_msg=name)
        assert found[camera_key("top")]["count"] == [len(images)]


def _stats(row: dict, feature: str) -> dict:
    return {name.rpartition("/")[2]: value for name, value in row.items() if name.startswith(f"stats/{feature}/")}


def test_a_video_gives_any_frame_by_its_time(dataset: RobotDataset) -> None:
    video = VideoReader(dataset.episodes[1].clips[camera_key("top")].file)
    times = video.times()
    assert len(video) == len(times) and times[:3] == pytest.approx([0, 0.05, 0.1])
    forwards = [video.at(time, 1e-4) for time in times]
    for i in reversed(range(len(times))):
        np.testing.assert_array_equal(video.at(times[i] + 0.009, 0.01), forwards[i])
    with pytest.raises(ValueError, match="no frame within 0.0100 s of 0.0250 s, the next is at 0.0500 s"):
        video.at(0.025, 0.01)
    with pytest.raises(ValueError, match="no frame at 99.0000 s"):
        video.at(99, 0.01)
    np.testing.assert_array_equal(video.at(times[1], 1e-4), forwards[1])


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from support.robot_episodes import some_episodes
from vlm_vision.data.lerobot import write_dataset

def episodes():
    for episode in some_episodes():
        yield episode
    print("written", flush=True)
    sys.stdin.read()

write_dataset({folder!r}, episodes(), fps=20, video=False)
"""


def test_a_killed_writer_leaves_no_data_set(tmp_path) -> None:
    code = WRITER.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / "set"))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    with process.stdout, process.stdin:
        assert process.stdout.readline() == b"written\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "set").exists()
    write_dataset(tmp_path / "set", some_episodes(1), fps=20, video=False)
    assert len(read_dataset(tmp_path / "set")) == LENGTHS[0]


def test_one_episode_is_drawn_at_a_time(tmp_path) -> None:
    written = []

    def episodes():
        for episode in some_episodes():
            staged = sum(path.stat().st_size for path in tmp_path.rglob("*.parquet"))
            written.append(staged)
            yield episode

    write_dataset(tmp_path / "set", episodes(), fps=20, video=False, data_files_size_in_mb=0.001)
    assert written[0] == 0 and written[1] < written[2] < written[3]


def test_hundreds_of_episodes(tmp_path) -> None:
    episodes = (Episode("go", {"top": ramps(8, 2, i)}, np.full((2, 2), i)) for i in range(205))
    write_dataset(tmp_path / "set", episodes, fps=20, video=False, data_files_size_in_mb=0.05)
    dataset = read_dataset(tmp_path / "set")
    assert len(list((tmp_path / "set/meta/episodes").rglob("*.parquet"))) > 1
    np.testing.assert_array_equal(dataset.column("action")[:, 0], np.arange(205).repeat(2))
    np.testing.assert_array_equal(dataset.image(409, "top"), ramps(8, 2, 204)[1])


def test_small_images_are_read_back_out_of_one_row_group(tmp_path) -> None:
    episodes = some_episodes(2, top=16, wrist=20)
    write_dataset(tmp_path / "set", episodes, fps=20, video=False)
    dataset = read_dataset(tmp_path / "set")
    np.testing.assert_array_equal(dataset.image(7, "wrist"), ramps(20, LENGTHS[1], 4)[2])


@pytest.mark.parametrize(("memory", "read"), [(1, 8), (2**20, 2)])
def test_what_is_kept_in_memory_is_read_once(tmp_path, monkeypatch, memory: int, read: int) -> None:
    write_dataset(tmp_path / "set", some_episodes(2, top=16), fps=20, video=False, **ROLLED)
    dataset = read_dataset(tmp_path / "set", memory=memory)
    first, times, whole = LENGTHS[0], [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **b: times.append(a) or whole(*a, **b))
    for _ in range(4):
        np.testing.assert_array_equal(dataset.image(first, "top"), ramps(16, LENGTHS[1], 1)[0])
        np.testing.assert_array_equal(dataset.image(0, "top"), ramps(16, first, 0)[0])
    assert len(times) == read
    assert pickle.loads(pickle.dumps(dataset))._cells.limit == memory
