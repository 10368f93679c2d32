"""LIBERO: the same numbers and images as its own environment gives, and the same again. Where it is installed."""

import numpy as np
import pytest

pytest.importorskip("libero", reason="LIBERO is not installed: pip install 'vlm-vision[libero]'")

from recipes import vla_eval
from vlm_vision.sim.libero import SETTLING, STILL, Libero, axis_angle, first_states

pytestmark = pytest.mark.filterwarnings("ignore")
ACTION = np.array([0.5, -0.3, -0.8, 0.1, 0, 0.2, 1], dtype=np.float32)


def test_states_and_images_are_liberos_own() -> None:
    from libero.libero import benchmark
    from libero.libero.envs import OffScreenRenderEnv

    ours = Libero("libero_spatial/3", size=64)
    seen = [ours.reset(10_002)]
    for _ in range(3):
        assert ours.step(ACTION) == (False, False)
    seen.append(ours.observe())
    again = ours.reset(2)
    for name in ("agentview", "wrist"):
        assert np.array_equal(again.images[name], seen[0].images[name])
    assert np.array_equal(again.state, seen[0].state)
    assert (ours.instruction, ours.fps, ours.frame(20, 30).shape) == (again.instruction, 20, (20, 30, 3))
    ours.close()

    suite = benchmark.get_benchmark_dict()["libero_spatial"]()
    theirs = OffScreenRenderEnv(bddl_file_name=suite.get_task_bddl_file_path(3), camera_heights=64, camera_widths=64)
    theirs.seed(0)
    theirs.reset()
    theirs.set_init_state(suite.get_task_init_states(3)[2])
    for _ in range(SETTLING):
        told = theirs.step(STILL)[0]
    for place in range(2):
        state = [told["robot0_eef_pos"], axis_angle(told["robot0_eef_quat"]), told["robot0_gripper_qpos"]]
        np.testing.assert_array_equal(seen[place].state, np.concatenate(state).astype(np.float32))
        drawn = theirs.sim.render(camera_name="agentview", height=64, width=64)  # what they tell lags by half a step
        assert np.array_equal(seen[place].images["agentview"], drawn[::-1, ::-1])
        assert np.abs(seen[place].images["agentview"].astype(int) - told["agentview_image"][::-1, ::-1]).mean() < 3
        for _ in range(3):
            told = theirs.step(ACTION)[0]
    theirs.close()


def test_turns_are_axis_and_angle() -> None:
    from robosuite.utils.transform_utils import quat2axisangle

    drawn = np.random.default_rng(0).normal(size=(50, 4))
    for one in [
        *drawn / np.linalg.norm(drawn, axis=1, keepdims=True),
        np.array([0, 0, 0, 1.0]),
        np.array([0, 0, 0, -1.0]),
    ]:
        np.testing.assert_allclose(axis_angle(one), quat2axisangle(one.copy()))


def test_no_first_state_is_counted_twice(tmp_path) -> None:
    given = dict(policy="random", tasks=("libero_spatial/0",), controls=("right",), out=str(tmp_path / "none"))
    assert first_states("libero_spatial/0") == 50
    with pytest.raises(ValueError, match="has 50 first states and episodes is 51: choose at most 50"):
        vla_eval.main(vla_eval.VlaEvalConfig(**given, episodes=51))


def test_unknown_names_are_refused() -> None:
    for name, sentence in (
        ("libero_spatial", "expected a suite and a number, as libero_spatial/0"),
        ("libero_spatial/10", "libero_spatial has the tasks 0 to 9"),
        ("libero_far/0", "suites: 'libero_10', "),
    ):
        with pytest.raises(ValueError, match=sentence):
            Libero(name)
    with pytest.raises(ValueError, match="cameras 'corner' are not known: choose from 'agentview'"):
        Libero("libero_spatial/0", cameras={"eye": "corner"})
