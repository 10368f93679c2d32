"""Data sets that are learned from together are of one robot."""

import pytest
from support.robot_episodes import LENGTHS, some_episodes

from vlm_vision.data.lerobot import RobotDataset, read_dataset, write_dataset
from vlm_vision.vla.recordings import Recordings


@pytest.fixture
def dataset(tmp_path):
    """A function that writes and opens a small data set."""

    def made(name: str, *, fps: int = 20, action_names: tuple[str, ...] = ()) -> RobotDataset:
        episodes = some_episodes(1, top=8, wrist=8)
        write_dataset(tmp_path / name, episodes, fps=fps, video=False, action_names=action_names)
        return read_dataset(tmp_path / name)

    return made


def test_moments_of_all_data_sets_are_in_a_row_and_names_are_of_whoever_tells_them(dataset) -> None:
    names = ("x", "y", "z", "grip")
    both = Recordings({"a": dataset("a"), "b": dataset("b", action_names=names)}, chunk=3)
    assert len(both) == 2 * LENGTHS[0] and [both[i].data for i in (0, LENGTHS[0])] == ["a", "b"]
    assert both.spec.action_names == names and both.spec.fps == 20


def test_robots_that_differ_are_not_mixed(dataset) -> None:
    one = dataset("one", action_names=("x", "y", "z", "grip"))
    with pytest.raises(
        ValueError, match="different robots .one: .* 20 frames per second; two: .* 10 frames per second"
    ):
        Recordings({"one": one, "two": dataset("two", fps=10)}, chunk=3)
    turned = dataset("turned", action_names=("y", "x", "z", "grip"))
    with pytest.raises(ValueError, match="action differently .one: x, y, z, grip; turned: y, x, z, grip.: train"):
        Recordings({"one": one, "turned": turned}, chunk=3)
