"""Plain folders of episodes become a LeRobotDataset, or say what is wrong with which."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.robot_episodes import some_episodes

from vlm_vision.cli.main import main
from vlm_vision.data.lerobot import read_dataset
from vlm_vision.data.lerobot.encode import write_clip
from vlm_vision.data.lerobot.from_folders import EpisodeFolders

EPISODES = some_episodes(3, success=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three episodes: camera `top` as images, `wrist` as images or a video; numbers in three forms."""
    for number, episode in enumerate(EPISODES):
        path = tmp_path / "raw" / f"episode_{[2, 10, 11][number]}"
        (path / "top").mkdir(parents=True)
        for step, image in enumerate(episode.images["top"]):
            Image.fromarray(image).save(path / "top" / f"{step}.png")
        if number == 0:
            (path / "wrist").mkdir()
            for step, image in enumerate(episode.images["wrist"]):
                Image.fromarray(image).save(path / "wrist" / f"{step:06d}.jpg", quality=95)
        else:
            write_clip(path / "wrist.mp4", episode.images["wrist"], Fraction(30), "h264")
        (path / "task.txt").write_text(episode.task + "\n")
        if number == 0:
            np.save(path / "actions.npy", episode.actions)
        elif number == 1:
            (path / "actions.json").write_text(json.dumps(episode.actions.tolist()))
        else:
            rows = [",".join(map(repr, row)) for row in episode.actions.tolist()]
            (path / "actions.csv").write_text("\n".join(["x,y,z,grip", *rows]) + "\n")
        np.savetxt(path / "states.csv", episode.states, delimiter=",", fmt="%.17g")
    return tmp_path / "raw"


def test_folders_become_a_data_set(folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["robot-data", str(folder), "--out", str(tmp_path / "set"), "--fps", "20", "--png"]) == 0
    assert "3 episodes, 21 frames, 2 tasks" in capsys.readouterr().out
    dataset = read_dataset(tmp_path / "set")
    for number, given in enumerate(EPISODES):
        found = dataset.episode(number)
        assert found.task == given.task and found.success is None
        np.testing.assert_array_equal(found.actions, given.actions.astype(np.float32))
        np.testing.assert_array_equal(found.states, given.states.astype(np.float32))
        np.testing.assert_array_equal(np.stack(list(found.images["top"])), given.images["top"])
        wrist = np.stack(list(found.images["wrist"])).astype(float)
        assert np.abs(wrist - given.images["wrist"]).mean() < 6  # JPEG or H.264


def test_videos_are_the_default(folder: Path, tmp_path: Path) -> None:
    assert main(["robot-data", str(folder), "--out", str(tmp_path / "set"), "--fps", "20"]) == 0
    assert read_dataset(tmp_path / "set").features["observation.images.top"].dtype == "video"


def spoil(path: Path, name: str) -> None:
    """Make one thing wrong with an episode."""
    if name == "camera":
        (path / "wrist.mp4").unlink()
    elif name == "length":
        (path / "top" / "0.png").unlink()
    elif name == "video":
        (path / "wrist.mp4").write_bytes(b"no video")
    elif name == "task":
        (path / "task.txt").unlink()
    elif name == "no actions":
        (path / "actions.json").unlink()
    elif name == "two actions":
        (path / "actions.csv").write_text("1,2\n")
    elif name == "twice":
        shutil.copytree(path / "top", path / "wrist")
    elif name == "empty":
        (path / "left").mkdir()
    elif name == "unknown":
        (path / "left.avi").write_bytes(b"a video")
    elif name == "notes":
        (path / "top" / "notes.txt").write_text("a good one")
    elif name == "picture":
        (path / "top" / "4.png").write_bytes(b"no image")
    elif name == "states":
        (path / "states.csv").write_text("1,2,3\n4,5\n")
    else:
        values = {
            "nan": EPISODES[1].actions * np.where(np.arange(9) == 3, np.nan, 1)[:, None],
            "dims": EPISODES[1].actions[:, :2],
            "flat": EPISODES[1].actions[:, 0],
            "words": [["a", "b"]] * 9,
        }[name]
        (path / "actions.json").write_text(json.dumps(np.asarray(values).tolist()))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("camera", "episode_10 has the cameras top, actions of 4 numbers and states of 3, unlike"),
        ("length", "episode_10: the parts of an episode of 'task 1' have lengths {'top': 8, 'wrist': 9, 'actions': 9"),
        ("video", "episode_10/wrist.mp4 cannot be decoded"),
        ("task", "episode_10: task.txt is missing or empty: expected the instruction"),
        ("no actions", "episode_10 has no actions: expected one of actions.npy, actions.csv, actions.json"),
        ("two actions", "episode_10 has actions.csv and actions.json: keep one"),
        ("twice", "episode_10 has the camera wrist twice: remove a folder or a video"),
        ("empty", "episode_10/left holds no images: expected those of a camera"),
        ("unknown", "episode_10/left.avi does not belong to an episode: expected task.txt, actions and states (.npy, .csv,"),
        ("notes", "episode_10/top/notes.txt is not an image: expected .png, .jpg"),
        ("picture", "episode 1 ('task 1'): frame 4 of camera top: image file"),
        ("states", "episode_10/states.csv holds no table of numbers"),
        ("nan", "episode_10/actions.json, row 3, holds NaN or Inf: repair it"),
        ("dims", "episode_10 has the cameras top, wrist, actions of 2 numbers and states of 3, unlike"),
        ("flat", "episode_10/actions.json holds numbers of shape (9,): expected (T, D)"),
        ("words", "episode_10/actions.json holds no table of numbers"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(folder: Path, tmp_path: Path, capsys, name, says) -> None:
    spoil(folder / "episode_10", name)
    assert main(["robot-data", str(folder), "--out", str(tmp_path / "set"), "--fps", "20"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and says in errors[0], errors
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_endings_in_capitals_count_and_hidden_files_do_not(folder: Path) -> None:
    for path in [*folder.glob("*/*.*"), *folder.glob("*/*/*.*")]:
        if path.name != "task.txt":
            path.rename(path.with_suffix(path.suffix.upper()))
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "episode_10/.DS_Store",
        "episode_10/top/desktop.ini",
        "episode_11/top/._0.png",
    ):
        (folder / name).write_bytes(b"no part of it")
    for found, given in zip(EpisodeFolders(folder), EPISODES, strict=True):
        assert {name: len(images) for name, images in found.images.items()} == dict.fromkeys(given.images, len(given))
        np.testing.assert_array_equal(found.actions, given.actions)
        assert found.states is not None


def test_no_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        EpisodeFolders(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no sub-folders"):
        EpisodeFolders(tmp_path)
