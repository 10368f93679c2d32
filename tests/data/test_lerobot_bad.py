"""Robot data that cannot be used: one sentence that names the file, the episode and the moment, and nothing half-written."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.robot_episodes import LENGTHS, ramps, some_episodes

from vlm_vision.data.lerobot import read_dataset, write_dataset
from vlm_vision.robot.episode import Episode


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A data set of PNG and two of videos."""
    folder = tmp_path_factory.mktemp("robot")
    write_dataset(folder / "png", some_episodes(), fps=20, video=False)
    write_dataset(folder / "av1", some_episodes(), fps=20)
    write_dataset(folder / "h264", some_episodes(), fps=20, codec="h264")
    return folder


@pytest.fixture
def png(written, tmp_path):
    return shutil.copytree(written / "png", tmp_path / "png")


@pytest.fixture(params=["av1", "h264"])
def video(written, tmp_path, request):
    return shutil.copytree(written / request.param, tmp_path / "video")


DATA = "data/chunk-000/file-000.parquet"


def change(path, name: str, row: int, value) -> None:
    """Another value in a row of a table."""
    table = pq.read_table(path)
    values = table[name].to_pylist()
    values[row] = value
    place = table.schema.get_field_index(name)
    pq.write_table(
        table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type)), path
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("action", [0.0, float("nan"), 0.0, 0.0], "episode 1, frame 2: action is NaN or Inf: repair it, or leave"),
        ("observation.state", [float("inf")] * 3, "episode 1, frame 2: observation.state is NaN or Inf"),
        ("action", None, "episode 1, frame 2: action has no value"),
        ("frame_index", None, "row 7: frame_index has no value"),
        ("frame_index", 3, "holds 9 time steps of episode 1, expected 0 to 8"),
        ("episode_index", 0, "holds 6 time steps of episode 0, expected 0 to 4"),
        ("task_index", 9, "has time steps of task 9, which its tasks.parquet lacks"),
    ],
)
def test_a_bad_row_is_named_when_the_data_set_is_opened(png, name: str, value, says: str) -> None:
    change(png / DATA, name, LENGTHS[0] + 2, value)
    with pytest.raises(ValueError, match=says):
        read_dataset(png)


def test_an_episode_with_a_bad_row_can_be_left_out(png) -> None:
    change(png / DATA, "action", LENGTHS[0] + 2, [float("nan")] * 4)
    assert len(read_dataset(png, episodes=[0, 2, 3])) == sum(LENGTHS) - LENGTHS[1]


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ({"bytes": b"\x89PNG no", "path": "a.png"}, "holds no image there that can be decoded"),
        ({"bytes": None, "path": "a.png"}, "holds no image there: embed"),
        (None, "holds no image there: embed"),
    ],
)
def test_an_image_that_is_none_is_named(png, cell, says: str) -> None:
    change(png / DATA, "observation.images.top", LENGTHS[0] + 2, cell)
    dataset = read_dataset(png)
    with pytest.raises(ValueError, match=f"episode 1, frame 2, camera top: .*file-000.parquet {says}"):
        dataset.frame(LENGTHS[0] + 2)
    assert dataset.frame(LENGTHS[0] + 3).step == 3


@pytest.mark.parametrize("name", [DATA, "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"])
@pytest.mark.parametrize("harm", ["cut", "lost"])
def test_a_damaged_table_is_named(png, name: str, harm: str) -> None:
    data = (png / name).read_bytes()
    (png / name).unlink()
    if harm == "cut":
        (png / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"(file-000|tasks)\.parquet cannot be read|holds no tables"):
        read_dataset(png)


def test_a_bit_that_flipped_in_a_table_is_an_error_or_changes_nothing(png) -> None:
    def all_of(folder) -> list[tuple[list, list]]:
        dataset = read_dataset(folder)
        frames = [dataset.frame(i) for i in range(len(dataset))]
        return [
            (
                [value.tolist() for value in one.values.values()],
                [np.asarray(x).tolist() for x in one.observation.images.values()],
            )
            for one in frames
        ]

    good, data, refused = all_of(png), (png / DATA).read_bytes(), 0
    for place in np.random.default_rng(0).integers(4, len(data) - 8, 20).tolist():
        harmed = bytearray(data)
        harmed[place] ^= 4
        (png / DATA).write_bytes(harmed)
        try:
            assert all_of(png) == good
        except ValueError as error:
            refused += "file-000.parquet" in str(error)
    assert refused > 5


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("__index_level_0__", None, "row 1, has the task_index 1 and the text None: expected a number and an instruction"),
        ("__index_level_0__", " ", "row 1, has the task_index 1 and the text ' ': expected"),
        ("task_index", None, "row 1, has the task_index None and the text 'task 1': expected"),
    ],
)
def test_a_task_that_is_none_is_named(png, name: str, value, says: str) -> None:
    change(png / "meta/tasks.parquet", name, 1, value)
    with pytest.raises(ValueError, match=f"tasks.parquet, {says}"):
        read_dataset(png)


@pytest.mark.parametrize("harm", ["cut", "overwritten", "lost", "empty"])
def test_a_damaged_video_is_named_and_others_are_read(video, harm: str) -> None:
    path = video / "videos/observation.images.top/chunk-000/file-000.mp4"
    data = bytearray(path.read_bytes())
    path.unlink()
    if harm != "lost":
        middle = data.find(b"mdat") + 8
        data[middle + 40 :] = {
            "cut": b"",
            "overwritten": np.random.default_rng(0).bytes(len(data) - middle - 40),
            "empty": b"",
        }[harm]
        path.write_bytes(b"" if harm == "empty" else data)
    dataset = read_dataset(video)
    with pytest.raises(ValueError, match=r"episode 1, frame 3, camera top: .*file-000.mp4 cannot be decoded"):
        dataset.frame(LENGTHS[0] + 3)
    assert dataset.image(LENGTHS[0] + 3, "wrist").shape == (64, 64, 3)


def test_a_video_that_ends_early_is_named(video, written, tmp_path) -> None:
    write_dataset(tmp_path / "short", some_episodes(1), fps=20)
    name = "videos/observation.images.top/chunk-000/file-000.mp4"
    shutil.copy(tmp_path / "short" / name, video / name)
    dataset = read_dataset(video)
    assert dataset.image(4, "top").shape == (64, 64, 3)
    with pytest.raises(
        ValueError, match=r"episode 1, frame 0, camera top: .*no frame at 0.2500 s, the last is at 0.2000 s"
    ):
        dataset.image(LENGTHS[0], "top")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(codebase_version="v2.1"), "is a LeRobotDataset v2.1, expected v3: convert it"),
        (dict(features=None), "does not describe a LeRobotDataset v3"),
        (dict(fps=0), "fps is 0: expected"),
        (dict(total_episodes=9), "holds 4 episodes, its info.json states 9"),
        (dict(data_path="../{chunk_index}/{file_index}.parquet"), "which leaves the folder"),
        (dict(data_path="{nothing}.parquet"), "has the invalid path"),
    ],
)
def test_a_description_that_is_none(png, change: dict, says: str) -> None:
    told = json.loads((png / "meta/info.json").read_text()) | change
    (png / "meta/info.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=says):
        read_dataset(png)


def test_no_data_set(tmp_path) -> None:
    with pytest.raises(ValueError, match="has no meta/info.json: expected the folder of a LeRobotDataset v3"):
        read_dataset(tmp_path)
    with pytest.raises(ValueError, match="there is no folder nowhere, and it is no hub id"):
        read_dataset("nowhere")


def test_no_statistics(png) -> None:
    (png / "meta/stats.json").unlink()
    with pytest.raises(ValueError, match="has no meta/stats.json: RobotDataset.measured computes statistics from the data"):
        read_dataset(png).statistics  # noqa: B018


def test_a_tolerance_that_two_frames_could_meet(png) -> None:
    with pytest.raises(ValueError, match="less than half a time step, 0.025"):
        read_dataset(png, tolerance=0.03)


def without(episode: Episode, camera: str) -> Episode:
    return replace(episode, images={name: given for name, given in episode.images.items() if name != camera})


GOOD, OTHER = some_episodes(2)


@pytest.mark.parametrize(
    ("episodes", "says"),
    [
        ([], "there are no episodes to write"),
        ([GOOD, without(OTHER, "top")], r"episode 1 \('task 1'\): it has the cameras \['observation.images.wrist'\]"),
        ([GOOD, replace(OTHER, states=None)], "episode 1 .* has no observation.state, unlike the first"),
        ([GOOD, replace(OTHER, success=None)], "episode 1 .* has no next.success, unlike the first"),
        ([GOOD, replace(OTHER, actions=OTHER.actions[:, :3])], "its action has 3 numbers, that of the first episode 4"),
        ([GOOD, replace(OTHER, actions=OTHER.actions * 1e300)], "action has numbers too large for float32"),
        ([GOOD, replace(OTHER, task=" ")], "it has no task"),
        (
            [GOOD, replace(OTHER, images={"top": ramps(32, 9, 0), "wrist": ramps(64, 9, 0)})],
            "frame 0 of camera top: sizes",
        ),
        (
            [replace(OTHER, images={"top": ["nothing.png"] * 9})],
            "frame 0 of camera top: image file 'nothing.png' does not",
        ),
        (
            [replace(OTHER, images={"top": ramps(64, 9, 0), "observation.images.top": ramps(64, 9, 1)})],
            "camera 'observation.images.top' would be the feature observation.images.top, which exists already",
        ),
        ([replace(OTHER, images={"a/b": ramps(64, 9, 0)})], "camera 'a/b' has an invalid name"),
        (
            [replace(OTHER, images={"top": ramps(16, 9, 0)})],
            "16 x 16 cannot be encoded as av1, .* use PNG .*video=False, --png.* or H.264 .*--codec h264",
        ),
        ([replace(OTHER, images={"top": ramps(65, 9, 0)})], "65 x 65 cannot be encoded as av1, which needs even sides"),
    ],
)
def test_episodes_that_make_no_data_set_leave_nothing(tmp_path, episodes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_dataset(tmp_path / "set", episodes, fps=20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(fps=12.5), "fps is 12.5: a LeRobotDataset has a whole number"),
        (dict(codec="vp9"), "codec 'vp9' is unknown: expected one of av1, h264"),
        (dict(action_names=("x",)), "there are 1 names for the 4 numbers of action"),
        (dict(chunks_size=0), r"chunks_size and sizes of files are \(0, 100, 200\)"),
    ],
)
def test_options_that_make_no_data_set(tmp_path, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_dataset(tmp_path / "set", [GOOD], **({"fps": 20} | options))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_as_it_is(png) -> None:
    before = (png / "meta/info.json").read_text()
    with pytest.raises(ValueError, match="already exists: choose a new folder"):
        write_dataset(png, [GOOD], fps=20)
    assert (png / "meta/info.json").read_text() == before
