"""A policy in closed loop, in several environments at once: an observation, some actions, the next observation."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlm_vision.robot.observation import Observation, PolicySpec
from vlm_vision.robot.policy import Policy
from vlm_vision.sim.environment import Environment
from vlm_vision.sim.outcomes import Outcome, Rollouts, Trial

Watch = Callable[[Environment, Outcome, bool], None]
"""Function that is called after each reset and step with the outcome so far, and True at the end of the episode."""


def rollout(
    policy: Policy,
    make: Callable[[str], Environment],
    trials: Sequence[Trial],
    *,
    at_once: int = 8,
    execute: int = 0,
    instructions: Mapping[str, str] | None = None,
    alter: Callable[[Observation], Observation] | None = None,
    watch: Watch | None = None,
) -> Rollouts:
    """Run each trial once. All environments observe at the same time, so that the policy gets one batch.

    Args:
        make: from a task's name to its environment, which serves one trial after another.
        at_once: environments that are open at a time.
        execute: steps of a chunk before the next observation; 0 for all.
        instructions: by task, said in place of the environment's own (`controls.shuffled`).
        alter: makes of an observation what the policy sees (`controls.blank`).

    Raises:
        ValueError: no trials, a policy of another robot or with other cameras, an `execute` longer than its chunk, or actions
            of another shape or not finite.
    """
    spec, seconds, looks = policy.spec, defaultdict[str, float](float), 0
    if not trials or at_once < 1 or not 0 <= execute <= spec.chunk:
        raise ValueError(
            f"there are {len(trials)} trials, {at_once} at once, {execute} steps for each observation: expected at least one, one, and "
            f"0 to {spec.chunk}, the chunk of the policy"
        )
    coming, outcomes = deque(enumerate(trials)), dict[int, Outcome]()
    running: list[_Running] = []
    spare: list[Environment] = []
    began = time.perf_counter()
    try:
        while coming or running:
            while coming and len(running) < at_once:
                place, trial = coming.popleft()
                one = _start_trial(place, trial, _environment(trial.task, make, spare, spec), instructions)
                running.append(one)
                if watch:
                    watch(one.environment, one.outcome, False)
            seen = [replace(one.observation, instruction=one.outcome.instruction) for one in running]
            looks += len(seen)
            looked = time.perf_counter()
            actions = policy.act([alter(one) for one in seen] if alter else seen)
            seconds["policy"] += time.perf_counter() - looked
            for stage, spent in actions.seconds.items():
                seconds[f"policy: {stage}"] += spent
            values = _checked(actions.values, len(running), spec)
            for one, chunk in zip(running, values[:, : execute or spec.chunk], strict=True):
                one.act(chunk, watch)
            outcomes |= {one.place: one.outcome for one in running}
            spare += [one.environment for one in running if one.over]
            running = [one for one in running if not one.over]
    finally:
        for environment in [*spare, *(one.environment for one in running)]:
            environment.close()
    total = time.perf_counter() - began
    times = {"total": total, "environments": total - seconds["policy"], **seconds}
    return Rollouts(tuple(outcomes[place] for place in range(len(trials))), times, looks)


@dataclass
class _Running:
    """A trial under way."""

    place: int
    environment: Environment
    observation: Observation
    outcome: Outcome
    over: bool = False

    def act(self, chunk: np.ndarray, watch: Watch | None) -> None:
        """Do actions (steps, A) until the episode is over; then observe if it is not."""
        for action in chunk:
            success, self.over = self.environment.step(action)
            self.outcome = replace(self.outcome, success=success, steps=self.outcome.steps + 1)
            if watch:
                watch(self.environment, self.outcome, self.over)
            if self.over:
                return
        self.observation = self.environment.observe()


def _start_trial(
    place: int, trial: Trial, environment: Environment, instructions: Mapping[str, str] | None
) -> _Running:
    said = environment.instruction if instructions is None else instructions[trial.task]
    try:
        return _Running(place, environment, environment.reset(trial.seed), Outcome(trial, said, False, 0))
    except BaseException:
        environment.close()
        raise


def _environment(
    task: str, make: Callable[[str], Environment], spare: list[Environment], spec: PolicySpec
) -> Environment:
    """A spare environment of the task; else a new one, after a spare one of another task is closed."""
    for place, environment in enumerate(spare):
        if environment.name == task:
            return spare.pop(place)
    if spare:
        spare.pop().close()
    environment = make(task)
    try:
        _check(spec, environment)
    except ValueError:
        environment.close()
        raise
    return environment


def _check(spec: PolicySpec, environment: Environment) -> None:
    if set(spec.cameras) != set(environment.cameras):
        raise ValueError(
            f"the policy uses cameras {list(spec.cameras)}, but {environment.name} has {list(environment.cameras)}: give the "
            "environment's cameras the same names"
        )
    if spec.action_dim != environment.action_dim or spec.state_dim not in (0, environment.state_dim):
        raise ValueError(
            f"the policy has actions of {spec.action_dim} numbers and states of {spec.state_dim}, but {environment.name} has "
            f"{environment.action_dim} and {environment.state_dim}: load a policy of this robot"
        )
    if spec.fps and abs(spec.fps - environment.fps) > 0.01:
        raise ValueError(
            f"the policy acts {spec.fps:g} times per second, but {environment.name} {environment.fps:g} times: load a policy that was "
            "trained at this rate"
        )


def _checked(values: np.ndarray, rows: int, spec: PolicySpec) -> np.ndarray:
    if np.shape(values) != (rows, spec.chunk, spec.action_dim):
        raise ValueError(
            f"the policy returned actions of shape {np.shape(values)}: expected {(rows, spec.chunk, spec.action_dim)} from its spec"
        )
    if not np.isfinite(values).all():
        raise ValueError("the policy returned actions that are NaN or Inf: check its weights and statistics")
    return values
