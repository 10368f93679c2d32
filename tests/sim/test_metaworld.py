"""Meta-World: the same seed is the same world, experts do their tasks, recordings can be done again."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install 'vlm-vision[sim]'")

import av
import yaml

import vlm_vision as vv
from recipes import vla_eval
from vlm_vision.new_models import new_encoder, new_language_model, word_tokenizer
from vlm_vision.preprocess.images import load_image
from vlm_vision.robot.observation import PolicySpec
from vlm_vision.robot.statistics import Statistics
from vlm_vision.sim.baselines import RandomPolicy, ScriptedExpert
from vlm_vision.sim.environment import EVALUATION_SEED
from vlm_vision.sim.instructions import INSTRUCTIONS
from vlm_vision.sim.metaworld import ACTION_NAMES, MetaWorld
from vlm_vision.sim.outcomes import Trial
from vlm_vision.sim.record import Demonstrations, Recorder
from vlm_vision.sim.rollout import rollout
from vlm_vision.sim.video import EpisodeVideos, VideoWriter
from vlm_vision.vla import VisionLanguageActionModel

SMALL = Recorder(("corner4", "gripperPOV"), size=32)


@pytest.fixture(scope="module")
def reach():
    """One environment for all; skips where there is nothing to draw with."""
    environment = MetaWorld("reach-v3", size=48)
    try:
        environment.reset(0)
    except OSError as error:
        pytest.skip(str(error))
    yield environment
    environment.close()


def test_every_task_has_words_of_its_own() -> None:
    from metaworld import ALL_V3_ENVIRONMENTS

    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS) and len(set(INSTRUCTIONS.values())) == 50


def test_a_seed_is_a_world(reach) -> None:
    first, other = reach.reset(3), reach.reset(EVALUATION_SEED)
    for _ in range(20):
        reach.step(np.ones(4))
    again = reach.reset(3)
    assert np.array_equal(first.images["corner4"], again.images["corner4"])
    assert np.array_equal(first.hidden, again.hidden) and np.array_equal(first.state, again.state)
    assert (first.hidden[-3:] != other.hidden[-3:]).all() and (first.hidden[4:6] != other.hidden[4:6]).all()
    assert np.abs(first.images["corner4"].astype(int) - other.images["corner4"]).max() > 50
    drawn = (
        "from vlm_vision.sim.metaworld import MetaWorld as M; w = M('reach-v3', size=48); o = w.reset(3); w.close();"
    )
    drawn += "print(o.hidden.tobytes().hex(), o.images['corner4'].tobytes().hex())"
    told = subprocess.run(
        [sys.executable, "-c", drawn], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert told.stdout.split() == [first.hidden.tobytes().hex(), first.images["corner4"].tobytes().hex()]
    assert not told.stderr


def test_the_state_is_hand_and_gripper_alone(reach) -> None:
    starts = [reach.reset(seed) for seed in (0, 1)]
    assert starts[0].state.shape == (4,) and np.array_equal(starts[0].state, starts[1].state)
    assert np.array_equal(starts[0].state, starts[0].hidden[:4].astype(np.float32))


def test_images_are_upright_and_of_any_size(reach) -> None:
    reach.reset(0)
    large, small = reach.frame(700, 200), reach.frame(40, 60)
    assert large.shape == (700, 200, 3) and small.shape == (40, 60, 3)
    upper, lower = np.split(reach.frame(96, 96).astype(int), 2)  # gray wall above, brown table below
    assert (upper.max(-1) - upper.min(-1)).mean() + 10 < (lower.max(-1) - lower.min(-1)).mean()


def test_the_goal_is_drawn_where_it_is(reach) -> None:
    reach.reset(0)
    np.testing.assert_allclose(reach._simulated.data.site("goal").xpos, reach.observe().hidden[-3:])


def test_actions_are_clipped_and_success_ends(reach) -> None:
    places = []
    for size in (1.0, 50.0):
        reach.reset(0)
        reach.step(np.full(4, size))
        places.append(reach.observe().state)
    assert np.array_equal(*places)
    for action in (np.ones(3), np.array([0, 0, np.nan, 0])):
        with pytest.raises(ValueError, match="4 finite numbers"):
            reach.step(action)


def test_the_expert_reaches_in_the_loop_and_chance_does_not(reach, tmp_path) -> None:
    trials = [Trial("reach-v3", EVALUATION_SEED + place) for place in range(2)]
    films = EpisodeVideos(tmp_path, per_task=1, side=64)
    (tmp_path / f"reach-v3-{EVALUATION_SEED}-failed.mp4").write_bytes(b"of a run before")

    def make(task: str) -> MetaWorld:
        return MetaWorld(task, cameras={"eye": "corner2"}, size=16, horizon=80)

    found = rollout(ScriptedExpert(["eye"]), make, trials, watch=films)
    assert found.all.successes == 2 and max(one.steps for one in found.outcomes) < 80
    assert rollout(RandomPolicy(PolicySpec(("eye",), 4, chunk=20)), make, trials).all.successes == 0
    (film,) = tmp_path.iterdir()
    assert film.name == f"reach-v3-{EVALUATION_SEED}-done.mp4"
    with av.open(str(film)) as opened:
        frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
        assert opened.streams.video[0].codec.name == "h264" and opened.streams.video[0].pix_fmt == "yuv420p"
    assert len(frames) == 1 + -(-found.outcomes[0].steps // 2)
    ((end, last),) = films.ends
    assert end == found.outcomes[0] and np.abs(frames[-1].astype(int) - last).mean() < 6


def test_a_recording_done_again_gives_the_same_states(reach) -> None:
    episode = SMALL("reach-v3", 5)
    assert episode.success and episode.task == INSTRUCTIONS["reach-v3"]
    assert {name: images.shape for name, images in episode.images.items()} == {
        "corner4": (len(episode), 32, 32, 3),
        "gripperPOV": (len(episode), 32, 32, 3),
    }
    states = [reach.reset(5).state]
    for action in episode.actions:
        success, done = reach.step(action)
        states.append(reach.observe().state)
    assert success and done and np.array_equal(np.stack(states[:-1]), episode.states)


def test_noise_moves_the_robot_and_the_expert_is_recorded(reach) -> None:
    noisy = Recorder(("corner4",), 16, noise=0.5)
    episode, again, plain = noisy("reach-v3", 5), noisy("reach-v3", 5), SMALL("reach-v3", 5)
    assert np.array_equal(episode.actions, again.actions) and np.array_equal(episode.states, again.states)
    assert np.array_equal(episode.actions[0], plain.actions[0]) and not np.array_equal(
        episode.states[1], plain.states[1]
    )
    assert np.abs(episode.actions).max() <= 1 and (episode.actions[:, 3] == 0).all()


def test_failures_are_left_out_and_processes_change_nothing(reach) -> None:
    recorder = Recorder(("corner4",), 8, horizon=47)  # seeds 1 and 4 take longer
    made = Demonstrations(recorder, ["reach-v3", "reach-wall-v3"], [3, 2])
    episodes = list(made)
    assert [one.task for one in episodes] == [INSTRUCTIONS[task] for task in made.tasks for _ in range(3)][:5]
    assert len(made) == len(episodes) == 5 and all(one.success and len(one) <= 47 for one in episodes)
    assert made.failed["reach-v3"] == 1
    beside = Demonstrations(recorder, made.tasks, [3, 2], workers=2)
    for one, other in itertools.zip_longest(episodes, beside):
        assert np.array_equal(one.states, other.states) and np.array_equal(
            one.images["corner4"], other.images["corner4"]
        )
    assert beside.failed == made.failed


def test_the_recipe_judges_writes_and_shows(reach, tmp_path, capsys) -> None:
    arguments = [
        "--policy",
        "expert",
        "--out",
        str(tmp_path),
        "--tasks",
        "[reach-v3, coffee-button-v3]",
        "--episodes",
        "1",
    ]
    arguments += ["--size", "16", "--film_size", "32", "--controls", "[right, shuffled]", "--cameras", "{eye: corner2}"]
    metrics = vla_eval.main(vla_eval.parse(arguments))
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    told = metrics["shuffled"]["episodes"]
    assert [one["instruction"] for one in told] == [INSTRUCTIONS["coffee-button-v3"], INSTRUCTIONS["reach-v3"]]
    assert metrics["right"]["mean"] == 1 and len(list((tmp_path / "videos").glob("*-done.mp4"))) == 2
    assert load_image(tmp_path / "contact_sheet.png").width > 300
    assert "mean" in (shown := capsys.readouterr().out) and "the policy infers its task from images" in shown
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["tasks"] == ["reach-v3", "coffee-button-v3"] and config["seed"] == EVALUATION_SEED
    assert len(vla_eval.VlaEvalConfig(policy="expert", tasks=("all",)).tasks) == 50
    with pytest.raises(ValueError, match="the control shuffled needs two"):
        vla_eval.VlaEvalConfig(policy="expert", tasks=("reach-v3",))
    with pytest.raises(ValueError, match="name each once"):
        vla_eval.VlaEvalConfig(policy="expert", tasks=("reach-v3", "reach-v3"))
    with pytest.raises(ValueError, match="seed is 7: expected at least 10000"):
        vla_eval.VlaEvalConfig(policy="expert", seed=7)
    misspelled = vla_eval.VlaEvalConfig(
        policy="expert", tasks=("reach-v3", "window-opn-v3"), out=str(tmp_path / "none")
    )
    with pytest.raises(ValueError, match="task 'window-opn-v3' is not known"):
        vla_eval.main(misspelled)
    assert not (tmp_path / "none").exists()  # before any episode


def test_a_rollout_that_breaks_leaves_no_half_of_a_film(reach, tmp_path) -> None:
    class Broken(ScriptedExpert):
        looks = 0

        def act(self, observations):
            self.looks += 1
            if self.looks > 5:
                raise OSError("the arm is on fire")
            return super().act(observations)

    with pytest.raises(OSError, match="on fire"), EpisodeVideos(tmp_path, side=64) as films:
        rollout(Broken(("corner4",)), lambda task: MetaWorld(task, size=16), [Trial("reach-v3", 5)], watch=films)
    assert not list(tmp_path.iterdir()) and not films.ends


def test_a_saved_policy_acts_in_the_loop(reach, tmp_path) -> None:
    tokenizer = word_tokenizer([*INSTRUCTIONS.values(), "what action should the robot take to ?"])
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    encoder = new_encoder(dict(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=32))
    llm = new_language_model({"model_type": "llama", **shape}, tokenizer)
    episode = SMALL("reach-v3", 5)
    statistics = {"action": Statistics.of(episode.actions), "observation.state": Statistics.of(episode.states)}
    model = VisionLanguageActionModel.attach(
        vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tokenizer),
        "parallel",
        spec=PolicySpec(("corner4",), 4, chunk=5, state_dim=4, action_names=ACTION_NAMES, fps=80),
        statistics={"ours": statistics},
    )
    model.save_pretrained(tmp_path / "policy")
    config = vla_eval.VlaEvalConfig(
        policy=str(tmp_path / "policy"), statistics="ours", out=str(tmp_path / "out"), tasks=("reach-v3", "push-v3"),
        episodes=1, size=16, horizon=10, films=0,
    )  # fmt: skip
    metrics = vla_eval.main(config)
    assert {metrics[control]["looks"] for control in ("right", "blank", "shuffled")} == {4}
    assert all(one["steps"] == 10 and not one["success"] for one in metrics["right"]["episodes"])
    assert set(metrics["right"]["seconds"]) >= {"policy: encode", "policy: decode"}
    with pytest.raises(ValueError, match="which alone takes chunk"):
        vla_eval.main(dataclasses.replace(config, policy_options={"chunk": 5}))
    with pytest.raises(ValueError, match="policy_options are {'hunk': 5}, which do not fit"):
        vla_eval.main(dataclasses.replace(config, policy_options={"hunk": 5}))
    with pytest.raises(ValueError, match="'ours'"):
        vla_eval.main(dataclasses.replace(config, statistics="theirs"))


def test_wrong_settings_are_refused(reach, tmp_path) -> None:
    with pytest.raises(ValueError, match="task 'reach' is not known: expected one of assembly-v3"):
        MetaWorld("reach")
    with pytest.raises(ValueError, match="views 'front' are not known: choose from topview"):
        MetaWorld("reach-v3", cameras=["front"])
    for settings in ({"size": 0}, {"horizon": 501}):
        with pytest.raises(ValueError, match="1 to 500 steps"):
            MetaWorld("reach-v3", **settings)
    with pytest.raises(ValueError, match="noise is -1"):
        Recorder(noise=-1)
    with pytest.raises(ValueError, match="the next seed is 10000"):
        list(Demonstrations(Recorder(("corner4",), 8), ["reach-v3"], 2, seed=EVALUATION_SEED - 1))
    with pytest.raises(ValueError, match="the next seed is 20000"):
        list(Demonstrations(Recorder(("corner4",), 8), ["reach-v3"], 1, seed=2 * EVALUATION_SEED))
    with pytest.raises(ValueError, match="episodes has 2 numbers for 1 tasks"):
        Demonstrations(Recorder(("corner4",), 8), ["reach-v3"], [2, 3])
    with pytest.raises(ValueError, match="episodes is .* expected 1"):
        Demonstrations(Recorder(("corner4",), 8), ["reach-v3", "push-v3"], [2, 0])
    with pytest.raises(ValueError, match="failed 5 times: use less noise"):
        list(Demonstrations(Recorder(("corner4",), 4, horizon=2), ["peg-insert-side-v3"], 1))
    video = VideoWriter(tmp_path / "a.mp4", 10)
    with pytest.raises(ValueError, match="even sides"):
        video.add(np.zeros((33, 32, 3), np.uint8))
