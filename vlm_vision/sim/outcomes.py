"""Results of a policy's episodes, with confidence intervals."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from vlm_vision.sim.intervals import SuccessRate


@dataclass(frozen=True)
class Trial:
    """One episode to run: the name of a task, and a seed."""

    task: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """Result of one episode.

    Args:
        instruction: the instruction that the policy got.
        steps: until it was done, or until time was up.
    """

    trial: Trial
    instruction: str
    success: bool
    steps: int


@dataclass(frozen=True)
class Rollouts:
    """Results of a policy.

    Args:
        outcomes: in the order of the trials.
        seconds: wall time of the policy, of the environments, and in all; and of each stage that the policy reports.
        looks: number of observations that the policy got.
    """

    outcomes: tuple[Outcome, ...]
    seconds: dict[str, float]
    looks: int

    @property
    def shares(self) -> dict[str, SuccessRate]:
        """Task -> success rate."""
        tries = Counter(one.trial.task for one in self.outcomes)
        done = Counter(one.trial.task for one in self.outcomes if one.success)
        return {task: SuccessRate(done[task], number) for task, number in tries.items()}

    @property
    def mean(self) -> float:
        """Mean of the rates of the tasks."""
        return sum(share.rate for share in self.shares.values()) / len(self.shares)

    @property
    def all(self) -> SuccessRate:
        """Success rate over all episodes."""
        return SuccessRate(sum(one.success for one in self.outcomes), len(self.outcomes))

    def rows(self) -> dict[str, str]:
        """Task -> its rate with the 95 % interval; and the mean of the tasks, with the interval of all episodes."""
        low, high = self.all.interval
        told = {task: str(share) for task, share in self.shares.items()}
        return told | {"mean": f"{self.mean:.1%} [{low:.1%}, {high:.1%}]"}

    def table(self) -> str:
        """The rows as text."""
        return "\n".join(f"{name:32}{cell:>28}" for name, cell in self.rows().items())

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        tasks = {
            task: {"rate": share.rate, "interval": list(share.interval), **asdict(share)}
            for task, share in self.shares.items()
        }
        told = {"mean": self.mean, "interval": list(self.all.interval), "tasks": tasks, "looks": self.looks}
        return told | {"seconds": self.seconds, "episodes": [asdict(one) for one in self.outcomes]}
