"""Closed loop, with a robot of three lines: laws that hold in every simulator."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from vlm_vision.robot.observation import Observation, PolicySpec
from vlm_vision.robot.policy import Actions
from vlm_vision.sim.controls import blank_images, shuffled_instructions
from vlm_vision.sim.instructions import INSTRUCTIONS
from vlm_vision.sim.intervals import SuccessRate
from vlm_vision.sim.outcomes import Trial
from vlm_vision.sim.rollout import rollout


class Line:
    """A point that must come to 3 on a line; it tells where it is by the gray of its image and by its state."""

    cameras, state_dim, action_dim, fps = ("eye",), 1, 1, 10.0
    opened: list["Line"] = []

    def __init__(self, name: str, horizon: int = 7):
        self.name, self.instruction, self.horizon = name, f"go along {name}", horizon
        self.closed, self.looks = False, 0
        Line.opened.append(self)

    def reset(self, seed: int) -> Observation:
        self.place, self.steps, self.success = -1.0 - seed % 5, 0, False
        return self.observe()

    def step(self, action: np.ndarray) -> tuple[bool, bool]:
        assert not self.closed and action.shape == (1,)
        self.place, self.steps = self.place + float(np.clip(action[0], -1, 1)), self.steps + 1
        self.success = self.success or self.place >= 3
        return self.success, self.success or self.steps >= self.horizon

    def observe(self) -> Observation:
        self.looks += 1
        gray = np.full((4, 6, 3), round(self.place * 10) % 256, dtype=np.uint8)
        return Observation({"eye": gray}, self.instruction, np.array([self.place], dtype=np.float32))

    def frame(self, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), dtype=np.uint8)

    def close(self) -> None:
        self.closed = True


@dataclass
class Walker:
    """Walks by what it sees and is told; keeps what it was given."""

    spec: PolicySpec = PolicySpec(("eye",), action_dim=1, chunk=4, state_dim=1, fps=10)
    seen: list[list[Observation]] = field(default_factory=list)
    broken: float = 0.0

    def act(self, observations) -> Actions:
        self.seen.append(list(observations))
        pace = [
            0.5 + (np.asarray(one.images["eye"])[0, 0, 0] % 7) / 14 + len(one.instruction) / 100 for one in observations
        ]
        return Actions(
            np.tile(np.array(pace, dtype=np.float32)[:, None, None], (1, 4, 1)) + self.broken, {"encode": 1.0}
        )


TRIALS = [Trial(task, seed) for task in ("north", "southwest", "east") for seed in range(4)]


@pytest.fixture(autouse=True)
def _none_open():
    Line.opened.clear()
    yield
    assert all(one.closed for one in Line.opened)


@pytest.mark.parametrize("execute", [0, 1, 3])
def test_several_at_once_equal_one_by_one(execute) -> None:
    single = rollout(Walker(), Line, TRIALS, at_once=1, execute=execute)
    assert [one.trial for one in single.outcomes] == TRIALS
    for at_once in (2, 5, 100):
        Line.opened.clear()
        policy = Walker()
        several = rollout(policy, Line, TRIALS, at_once=at_once, execute=execute)
        assert several.outcomes == single.outcomes and several.looks == single.looks
        assert len(policy.seen[0]) == min(at_once, len(TRIALS))
    assert 0 < single.all.successes < len(TRIALS) or execute != 1


def test_a_chunk_is_done_without_looking() -> None:
    looks = {execute: rollout(Walker(), Line, TRIALS, execute=execute).looks for execute in (1, 2, 4)}
    steps = {
        execute: [one.steps for one in rollout(Walker(), Line, TRIALS, execute=execute).outcomes] for execute in looks
    }
    for execute, number in looks.items():
        assert number == sum(-(-taken // execute) for taken in steps[execute])


def test_an_environment_serves_trial_after_trial_and_few_are_open() -> None:
    open_now = []
    rollout(
        Walker(), Line, TRIALS, at_once=4, watch=lambda *_: open_now.append(sum(not one.closed for one in Line.opened))
    )
    assert max(open_now) == 4 and len(Line.opened) == 12
    told = rollout(Walker(), Line, TRIALS[:4], at_once=1)
    assert len(Line.opened) == 13 and set(told.seconds) == {"total", "policy", "environments", "policy: encode"}


def test_watching_sees_every_step_and_the_end() -> None:
    seen = []
    found = rollout(Walker(), Line, TRIALS, watch=lambda environment, outcome, over: seen.append((outcome, over)))
    ends = {outcome.trial: outcome for outcome, over in seen if over}
    assert [ends[trial] for trial in TRIALS] == list(found.outcomes)
    assert len(seen) == sum(one.steps + 1 for one in found.outcomes)


def test_controls_reach_the_policy_and_nothing_else() -> None:
    policy, told = (
        Walker(),
        shuffled_instructions({name: f"go along {name}" for name in ("north", "southwest", "east")}, seed=3),
    )
    found = rollout(policy, Line, TRIALS, instructions=told, alter=blank_images, at_once=3)
    for one in (observation for batch in policy.seen for observation in batch):
        assert np.array_equal(one.images["eye"], np.full((4, 6, 3), 128)) and one.instruction in told.values()
        assert one.state is not None
    assert all(one.instruction == told[one.trial.task] != f"go along {one.trial.task}" for one in found.outcomes)


def test_shuffled_instructions_are_one_ring() -> None:
    for seed in range(20):
        told = shuffled_instructions(INSTRUCTIONS, seed)
        assert sorted(told.values()) == sorted(INSTRUCTIONS.values())
        assert all(told[task] != words for task, words in INSTRUCTIONS.items())
    assert (
        shuffled_instructions(INSTRUCTIONS, 1)
        == shuffled_instructions(INSTRUCTIONS, 1)
        != shuffled_instructions(INSTRUCTIONS, 2)
    )
    with pytest.raises(ValueError, match="two tasks or more"):
        shuffled_instructions({"north": "go"})
    with pytest.raises(ValueError, match="different instructions"):
        shuffled_instructions({"north": "go", "south": "go"})


@pytest.mark.parametrize(
    ("successes", "tries", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval(successes, tries, low, high) -> None:  # Newcombe (1998), table I, method 3
    np.testing.assert_allclose(SuccessRate(successes, tries).interval, (low, high), atol=5.1e-5)


def test_a_share_needs_tries() -> None:
    for successes, tries in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="at least one try"):
            SuccessRate(successes, tries)


def test_the_mean_counts_tasks_and_its_interval_episodes() -> None:
    found = rollout(Walker(), lambda name: Line(name, 3 if name == "east" else 7), TRIALS)
    rates = [share.rate for share in found.shares.values()]
    assert list(found.shares) == ["north", "southwest", "east"] and found.mean == pytest.approx(np.mean(rates))
    assert found.all.tries == 12 and found.shares["east"].successes == 0
    assert [line.split()[0] for line in found.table().splitlines()] == ["north", "southwest", "east", "mean"]
    kept = json.loads(json.dumps(found.to_dict()))
    assert kept["tasks"]["east"]["interval"][0] == 0 and len(kept["episodes"]) == 12


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (PolicySpec(("hand",), 1, 4), r"cameras \['hand'\], but north has \['eye'\]"),
        (PolicySpec(("eye",), 2, 4), "actions of 2 numbers"),
        (PolicySpec(("eye",), 1, 4, state_dim=7), "states of 7"),
        (PolicySpec(("eye",), 1, 4, fps=80), "80 times per second, but north 10"),
        (PolicySpec(("eye",), 1, 5), r"shape \(8, 4, 1\): expected \(8, 5, 1\)"),
    ],
)
def test_a_policy_of_another_robot_is_refused(spec, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        rollout(Walker(spec), Line, TRIALS)


def test_an_environment_that_cannot_begin_is_closed() -> None:
    class Dark(Line):
        def reset(self, seed: int) -> Observation:
            raise OSError("nothing to draw with")

    with pytest.raises(OSError, match="nothing to draw"):
        rollout(Walker(), Dark, TRIALS)  # what stays open fails at the end of each test


def test_wrong_settings_and_bad_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        rollout(Walker(broken=np.nan), Line, TRIALS)
    for settings in ({"execute": 5}, {"at_once": 0}, {"execute": -1}):
        with pytest.raises(ValueError, match="0 to 4, the chunk"):
            rollout(Walker(), Line, TRIALS, **settings)
    with pytest.raises(ValueError, match="0 trials"):
        rollout(Walker(), Line, [])
