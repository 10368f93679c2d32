"""Demonstrations by Meta-World's scripted experts, as episodes or as a LeRobot data set.

vlm-vision record --tasks reach-v3 push-v3 --episodes 50 --size 128 --out FOLDER
"""

import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count

import numpy as np

from vlm_vision.robot.episode import Episode
from vlm_vision.sim.baselines import ScriptedExpert
from vlm_vision.sim.environment import EVALUATION_SEED, TRAINING_SEED
from vlm_vision.sim.metaworld import HORIZON, MetaWorld


@dataclass(frozen=True)
class Recorder:
    """Settings for a recorded episode of an expert.

    Args:
        views: cameras, each named after its view of the scene.
        size: side of the images, in pixels.
        noise: standard deviation of the noise on the executed actions. The recorded actions have no noise, so that
            a policy learns what to do next to the expert's path (DART, Laskey et al. 2017).
        horizon: steps after which a try has failed.
    """

    views: tuple[str, ...] = ("corner4",)
    size: int = 128
    noise: float = 0.0
    horizon: int = HORIZON

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ValueError(f"noise is {self.noise}: expected a standard deviation of at least 0")

    def __call__(self, task: str, seed: int) -> Episode:
        """Until the task is done or time is up; `success` tells which."""
        environment, expert = _environment(task, self.views, self.size, self.horizon), ScriptedExpert(self.views)
        drawn = np.random.default_rng([seed, 1])
        seen, actions = [environment.reset(seed)], []
        while True:
            actions.append(expert.act(seen[-1:]).values[0, 0])
            success, done = environment.step(actions[-1] + self.noise * drawn.standard_normal(4))
            if done:
                break
            seen.append(environment.observe())
        images = {view: np.stack([np.asarray(one.images[view]) for one in seen]) for view in self.views}
        states = np.stack([np.asarray(one.state) for one in seen])
        return Episode(environment.instruction, images, np.stack(actions), states, success)


class Demonstrations:
    """The requested number of successful episodes of each task: those of the first seeds with which the expert succeeds.

    Args:
        tasks: one after the other.
        episodes: of each task; one number for all, or one for each.
        seed: first one.
        workers: processes; 0 for this one. The episodes do not depend on it.

    Raises:
        ValueError: an unknown task or view, numbers that do not fit; while iterating, an expert that fails four times as often as it should succeed, or
            seeds that would reach those of evaluation.
    """

    def __init__(
        self,
        recorder: Recorder,
        tasks: Sequence[str],
        episodes: int | Sequence[int],
        *,
        seed: int = TRAINING_SEED,
        workers: int = 0,
    ):
        of_each = [episodes] if isinstance(episodes, int) else list(episodes)
        if not of_each or min(of_each) < 1 or workers < 0 or seed < 0 or not tasks:
            raise ValueError(
                f"episodes is {episodes}, workers {workers}, seed {seed}, tasks {list(tasks)}: expected 1, 0 and 0 or more, "
                "and at least one task"
            )
        if len(of_each) not in (1, len(tasks)):
            raise ValueError(
                f"episodes has {len(of_each)} numbers for {len(tasks)} tasks: pass one for all, or one for each"
            )
        for task in tasks:
            MetaWorld(task, cameras=recorder.views, size=recorder.size, horizon=recorder.horizon).close()
        self.recorder, self.tasks, self.seed, self.workers = recorder, tasks, seed, workers
        self.episodes = of_each if len(of_each) == len(tasks) else of_each * len(tasks)
        self.failed: Counter[str] = Counter()
        """Task -> number of failed episodes, which are not recorded."""

    def __len__(self) -> int:
        return sum(self.episodes)

    def __iter__(self) -> Iterator[Episode]:
        self.failed.clear()
        with _processes(self.workers) as begin:
            for task, episodes in zip(self.tasks, self.episodes, strict=True):
                yield from self._of(task, episodes, begin)

    def _of(self, task: str, episodes: int, begin: "Begin") -> Iterator[Episode]:
        seeds, waiting, found = count(self.seed), deque[Callable[[], Episode]](), 0
        while found < episodes:
            while len(waiting) < min(2 * self.workers or 1, episodes - found):
                waiting.append(begin(self.recorder, task, self._checked(next(seeds))))
            episode = waiting.popleft()()
            if episode.success:
                found += 1
                yield episode
                continue
            self.failed[task] += 1
            if self.failed[task] > 4 * episodes:
                raise ValueError(
                    f"the expert of {task} succeeded {found} times and failed {self.failed[task]} times: use less noise, or "
                    "remove the task"
                )

    def _checked(self, seed: int) -> int:
        if seed >= EVALUATION_SEED:
            raise ValueError(
                f"the next seed is {seed}, but seeds from {EVALUATION_SEED} on are for evaluation: record fewer episodes, or "
                "start from a lower seed"
            )
        return seed


Begin = Callable[[Recorder, str, int], Callable[[], Episode]]
"""Start an episode; the returned function waits for it."""


@contextmanager
def _processes(workers: int) -> Iterator[Begin]:
    if not workers:
        yield partial
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        yield lambda recorder, task, seed: pool.submit(recorder, task, seed).result
    finally:
        pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=1)
def _environment(task: str, views: tuple[str, ...], size: int, horizon: int) -> MetaWorld:
    return MetaWorld(task, cameras=views, size=size, horizon=horizon)
