"""A data set that the lerobot library wrote, read as its own reader reads it (made by benchmarks/lerobot_parity.py)."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lerobot_parity import CHUNK, LENGTHS, TASKS, compare
from vlm_vision.data.lerobot import read_dataset, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lerobot") / "set"
    with zipfile.ZipFile(Path(__file__).parent / "lerobot_v3.zip") as file:
        file.extractall(folder)
    return folder


def test_every_feature_and_chunk_is_what_lerobot_reads(folder: Path) -> None:
    with np.load(folder / "expected.npz") as held:
        expected = dict(held)
    differences = compare(folder, expected)
    assert len(differences) == 15 and expected["action chunks"].shape == (sum(LENGTHS), CHUNK, 4)
    assert expected["action_is_pad"].sum() == len(LENGTHS) * CHUNK * (CHUNK - 1) // 2
    # another FFmpeg may round its colors elsewhere
    assert {name for name, found in differences.items() if found} <= {"observation.images.top"}
    assert differences["observation.images.top"] <= 2


def test_tasks_and_names_are_lerobots(folder: Path) -> None:
    dataset = read_dataset(folder)
    assert [dataset.episode(i).task for i in range(dataset.num_episodes)] == list(TASKS)
    assert dataset.action_names == ("a", "b", "c", "d") and dataset.info.robot_type == "toy"
    actions = dataset.column("action").astype(np.float64)
    np.testing.assert_allclose(dataset.statistics["action"].mean, actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(dataset.statistics["action"].std, actions.std(0), atol=1e-6)


def test_what_is_written_here_has_lerobots_files_and_columns(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    theirs = read_dataset(folder, cameras={"wrist": "wrist"})
    write_dataset(tmp_path / "set", (theirs.episode(i) for i in range(theirs.num_episodes)), fps=20, video=False)
    ours_of = {"observation.images.wrist", "observation.state", "action", "timestamp", "frame_index", "episode_index"}
    ours_of |= {"index", "task_index"}
    for name in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"):
        ours, wanted = (pq.read_schema(root / name) for root in (tmp_path / "set", folder))
        kept = [field for field in wanted if "/" not in field.name or field.name.split("/")[0] in ("data", "meta")]
        kept += [field for field in wanted if field.name.startswith("stats/") and field.name.split("/")[1] in ours_of]
        if name.startswith("data"):
            kept = [field for field in wanted if field.name in ours_of]
        for field in kept:
            found = str(ours.field(field.name).type)
            assert found == str(field.type).replace("large_string", "string"), field.name
        assert set(ours.names) == {field.name for field in kept}
