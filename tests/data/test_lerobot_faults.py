"""Robot data that would train on the wrong moments or by the wrong numbers."""

import json
import logging
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.robot_episodes import LENGTHS, ramps, some_episodes

from vlm_vision.data.check.robot import check_robot
from vlm_vision.data.lerobot import read_dataset, write_dataset
from vlm_vision.robot.contradictions import contradictions
from vlm_vision.robot.episode import Episode
from vlm_vision.robot.normalize import Normalizer
from vlm_vision.robot.statistics import Statistics
from vlm_vision.vla.recordings import Recordings

EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    write_dataset(folder / "video", some_episodes(), fps=20, codec="h264")
    images = {"top": ramps(8, 40, 0)}
    rng = np.random.default_rng(0)
    apart = [Episode("go", images, rng.normal(10 * i, 0.1, (40, 2)), rng.normal(size=(40, 2))) for i in range(3)]
    write_dataset(folder / "apart", apart, fps=20, video=False)
    return folder


@pytest.fixture
def video(written, tmp_path):
    return shutil.copytree(written / "video", tmp_path / "video")


@pytest.fixture
def apart(written, tmp_path):
    """Three episodes whose actions lie apart, with statistics as lerobot's `compute_stats` aggregates them."""
    folder = shutil.copytree(written / "apart", tmp_path / "apart")
    stats = json.loads((folder / "meta/stats.json").read_text())
    rows = pq.read_table(folder / EPISODES).to_pylist()
    for name in ("q01", "q99"):
        stats["action"][name] = np.mean([row[f"stats/action/{name}"] for row in rows], axis=0).tolist()
    (folder / "meta/stats.json").write_text(json.dumps(stats))
    return folder


def put(folder, name: str, values: list) -> None:
    """Another column in the table of episodes."""
    table = pq.read_table(folder / EPISODES)
    place = table.schema.get_field_index(name)
    pq.write_table(table.set_column(place, name, pa.array(values, table.schema.field(name).type)), folder / EPISODES)


def test_training_normalizes_by_exact_quantiles(apart):
    dataset = read_dataset(apart)
    actions = dataset.column("action")
    stored, exact = dataset.statistics["action"], Recordings({"a": dataset}, chunk=2).statistics["a"]["action"]
    np.testing.assert_array_equal(exact.q01, np.quantile(actions.astype(np.float64), 0.01, axis=0))
    import torch

    given = torch.from_numpy(actions)
    for statistics, least, most in ((stored, 2, 20), (exact, 0, 0.01)):
        normalizer = Normalizer("quantiles", statistics)
        assert least <= (normalizer.invert(normalizer(given)) - given).abs().mean() <= most
    report = check_robot("apart", dataset)
    assert report.doubts["statistics that the data contradict"].count == 2  # one of each dimension
    assert "leave out 6" in report.table() or "leave out 7" in report.table()
    assert report.facts["clipped of action"].startswith("3.3%")  # the two lowest and the two highest of 120


def test_statistics_are_of_the_episodes_that_train(apart):
    first = Recordings({"a": read_dataset(apart, episodes=[0])}, chunk=2).statistics["a"]["action"]
    assert abs(first.mean).max() < 0.1 and first.count == 40


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"q01": [5.0], "q99": [1.0]}, "q01 5 above q99 1"),
        ({"q01": [0.5], "q99": [0.5]}, "q01 and q99 are both 0.5, and the data vary"),
        ({"std": [0.0]}, "std 0, and the data vary"),
        ({"max": [0.7]}, "max 0.7, and the data reach up to 1"),
        ({"mean": [9.0]}, "mean 9, and the data lie in 0 to 1"),
        ({"count": 7}, "count 7 for 101 rows"),
        ({"q01": [100.0], "q99": [200.0]}, "q01 100 to q99 200 leave out 100% of the data"),
    ],
)
def test_statistics_of_other_data_are_named(changes, says):
    values = np.linspace(0, 1, 101)[:, None]
    good = {**vars(Statistics.of(values)), "mask": None}
    assert contradictions(Statistics(**good), values, 101) == []
    assert says in " ".join(contradictions(Statistics(**(good | changes)), values, 101))


def test_spans_that_overlap_are_refused(video):
    spans = {"from": [0.0, 5 / 20, 14 / 20, 21 / 20], "to": [5 / 20, 14 / 20, 21 / 20, 22 / 20]}
    key = "videos/observation.images.top"
    for change, says in (
        ({"from": [0.0] * 4, "to": [length / 20 for length in LENGTHS]}, "the spans of episodes 0 and .* overlap by"),
        ({"from": [0.0, 0.25, 0.5, 0.5]} , "span of episode 2 is 0.5 to 1.05 s, and its 7 rows last 0.35 s"),
        ({"to": [0.25, 0.45, 1.05, 1.1]}, "span of episode 1 is 0.25 to 0.45 s, and its 9 rows last 0.45 s"),
        ({"from": [float("nan"), *spans["from"][1:]]}, "span of episode 0 is nan"),
    ):
        for end in ("from", "to"):
            put(video, f"{key}/{end}_timestamp", (spans | change)[end])
        with pytest.raises(ValueError, match=says):
            read_dataset(video)
        assert len(read_dataset(video, cameras={"wrist": "wrist"})) == sum(LENGTHS)  # whose spans are right
    with pytest.raises(ValueError, match="episode 0 is nan"):
        read_dataset(video, episodes=[0, 3])
    assert len(read_dataset(video, episodes=[1, 3])) == LENGTHS[1] + LENGTHS[3]


def rename(folder, old: str, new: str) -> None:
    for file in folder.rglob("file-*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.rename_columns([name.replace(old, new) for name in table.column_names]), file)
    for file in ("info", "stats"):
        path = folder / f"meta/{file}.json"
        path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))


def test_state_and_action_under_other_names(written, tmp_path):
    folder = shutil.copytree(written / "apart", tmp_path / "set")
    rename(folder, "observation.state", "state")
    rename(folder, "action", "actions")
    dataset = read_dataset(folder, state="state", action="actions")
    same = read_dataset(written / "apart")
    for name in ("action", "observation.state"):
        np.testing.assert_array_equal(dataset.column(name), same.column(name))
    recordings = Recordings({"a": dataset}, chunk=2)
    assert recordings.spec.state_dim == 2 and recordings.spec.action_dim == 2
    np.testing.assert_array_equal(recordings[3].observation.state, same.frame(3).observation.state)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).column("action"), same.column("action"))
    both = read_dataset(folder, state="state + actions", action="actions")
    assert both.column("observation.state").shape == (120, 4)
    with pytest.raises(ValueError, match="no feature of numbers 'joints': it has 'actions', 'state'"):
        read_dataset(folder, state="joints")
    with pytest.raises(ValueError, match="called 'action': it has .*name another one by state= and action="):
        read_dataset(folder).column("action")
    blind = read_dataset(folder, action="actions")
    with pytest.raises(ValueError, match="data set a has no observation.state to read, and the features 'state': set data.state"):
        Recordings({"a": blind}, chunk=2)
    assert Recordings({"a": blind}, chunk=2, read_state=False).spec.state_dim == 0


def test_a_data_set_without_any_state_trains_with_a_warning(tmp_path, caplog):
    write_dataset(tmp_path / "set", some_episodes(1, top=8, wrist=8, states=False), fps=10, video=False)
    with caplog.at_level(logging.WARNING):
        assert Recordings({"a": read_dataset(tmp_path / "set")}, chunk=2).spec.state_dim == 0
    assert "data set a has no state: the policy reads none" in caplog.text


def test_a_state_that_is_not_finite_is_refused_under_any_name(written, tmp_path):
    folder = shutil.copytree(written / "apart", tmp_path / "set")
    rename(folder, "observation.state", "state")
    file = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    values = table["state"].to_pylist()
    values[7] = [float("nan"), 0.0]
    field = table.schema.field("state")
    pq.write_table(table.set_column(table.schema.get_field_index("state"), field, pa.array(values, field.type)), file)
    with pytest.raises(ValueError, match="episode 0, frame 7: state is NaN or Inf"):
        read_dataset(folder, state="state")
    assert len(read_dataset(folder)) == 120


def test_a_table_of_episodes_needs_no_column_tasks(video):
    table = pq.read_table(video / EPISODES)
    pq.write_table(table.drop_columns(["tasks"]), video / EPISODES)
    dataset = read_dataset(video)
    assert [dataset.episode(i).task for i in range(4)] == ["task 0", "task 1", "task 0", "task 1"]


def test_each_error_names_the_way_out(video, tmp_path):
    (video / "meta/stats.json").unlink()
    with pytest.raises(ValueError, match="has no meta/stats.json: RobotDataset.measured computes"):
        read_dataset(video).statistics  # noqa: B018
    assert Recordings({"a": read_dataset(video)}, chunk=2).statistics["a"]["action"].dim == 4
    info = json.loads((video / "meta/info.json").read_text())
    depth = info["features"]["observation.images.wrist"] | {"shape": [64, 64, 1]}
    info["features"]["observation.images.wrist"] = depth
    (video / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="camera 'wrist' has images of shape .* depth maps: name the cameras to read in cameras, of 'top'"):
        read_dataset(video)
    assert read_dataset(video, cameras={"top": "top"}).cameras == ("top",)
    (video / EPISODES).write_bytes((video / EPISODES).read_bytes()[:-9])  # as a recorder leaves it that was not finalized
    with pytest.raises(ValueError, match=r"download it again; a set that was recorded here needs finalize\(\)"):
        read_dataset(video, cameras={"top": "top"})
