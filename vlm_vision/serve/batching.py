"""Batches of observations from many clients, which one thread passes to the policy."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_vision.robot.observation import Observation
from vlm_vision.robot.policy import Policy
from vlm_vision.serve.errors import RequestError
from vlm_vision.serve.metrics import Metrics
from vlm_vision.serve.settings import ServerSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """Actions for one observation, and what they took.

    Args:
        actions: (chunk, action_dim) float32.
        stages: seconds of each stage, as the policy tells them, of the whole batch.
        queue, infer: seconds until the policy had it, and in the policy.
        batch: observations that were run together.
    """

    actions: np.ndarray
    stages: dict[str, float]
    queue: float
    infer: float
    batch: int


@dataclass(frozen=True, eq=False)
class _Pending:
    observation: Observation
    answer: asyncio.Future[Answer]
    since: float


class Batcher:
    """Runs the policy, always in the same thread, at most `max_batch` observations at a time.

    If a batch fails, its observations are run one by one, so that one does not fail the others. If the thread itself ends,
    whoever waits or comes is refused.
    """

    def __init__(self, policy: Policy, settings: ServerSettings, metrics: Metrics) -> None:
        self._policy, self._settings, self._metrics = policy, settings, metrics
        self._waiting: deque[_Pending] = deque()
        self._changed = threading.Condition()
        self._closing = self._ended = False
        self._asked: set[asyncio.Future[Answer]] = set()
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    async def act(self, observation: Observation) -> Answer:
        """Actions for one observation. Canceled, it waits no more and is not computed, unless it already is.

        Raises:
            RequestError: the server is stopping or its policy has ended (503), too many wait (429), the policy refused it (400) or
                failed (500).
        """
        waiting = _Pending(observation, asyncio.get_running_loop().create_future(), time.perf_counter())
        with self._changed:
            if self._closing:
                raise RequestError(503, "the server is stopping: try again later, or use another server")
            if self._ended:
                raise _policy_ended()
            if len(self._waiting) >= self._settings.max_queue:
                raise RequestError(
                    429, f"{len(self._waiting)} observations are waiting for the policy already: try again later"
                )
            self._waiting.append(waiting)
            self._changed.notify()
        self._asked.add(waiting.answer)
        try:
            return await waiting.answer
        finally:
            self._asked.discard(waiting.answer)
            with self._changed, contextlib.suppress(ValueError):  # it is there only if this was canceled
                self._waiting.remove(waiting)

    @property
    def length(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether what asks will be answered."""
        return not (self._closing or self._ended)

    async def close(self, seconds: float) -> None:
        """Take nothing more; return when all that waits is answered, or after so many seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        until = time.monotonic() + seconds
        while not self._ended and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)  # answers that the thread has handed over are taken
        for answer in self._asked:
            _settle(
                answer,
                RequestError(
                    503, f"the server is stopping, and the policy did not finish within {seconds:g} s: try again later"
                ),
            )

    def _run(self) -> None:
        batch: list[_Pending] | None = []
        try:
            while (batch := self._next()) is not None:
                self._give(batch, self._outcomes(batch) if batch else [])
        except BaseException:  # such as SystemExit, which a policy may raise too
            _log.exception("the policy has stopped: all requests are refused until the server restarts")
        finally:
            with self._changed:
                self._ended = True
                left = [*(batch or []), *self._waiting]
                self._waiting.clear()
            self._give(left, [_policy_ended() for _ in left])

    def _give(self, batch: list[_Pending], outcomes: Sequence[Answer | RequestError]) -> None:
        for waiting, outcome in zip(batch, outcomes, strict=True):
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                waiting.answer.get_loop().call_soon_threadsafe(_settle, waiting.answer, outcome)

    def _next(self) -> list[_Pending] | None:
        """The next batch, without those whose client has gone; None at the end."""
        most = self._settings.max_batch
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            left = self._waiting[0].since + self._settings.max_wait_ms / 1000 - time.perf_counter()
            self._changed.wait_for(lambda: len(self._waiting) >= most or self._closing, timeout=max(left, 0))
            batch = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        return [waiting for waiting in batch if not waiting.answer.done()]

    def _outcomes(self, batch: list[_Pending]) -> list[Answer | RequestError]:
        began = time.perf_counter()
        try:
            actions = self._policy.act([waiting.observation for waiting in batch])
            values = np.asarray(actions.values, dtype=np.float32)
            expected = (len(batch), self._policy.spec.chunk, self._policy.spec.action_dim)
            if values.shape != expected:
                raise RuntimeError(f"its actions have shape {values.shape}, expected {expected} from its spec")
            stages = {name: float(seconds) for name, seconds in actions.seconds.items()}
        except Exception as error:  # whatever a policy raises, the server lives
            if len(batch) > 1:
                return [outcome for waiting in batch for outcome in self._outcomes([waiting])]
            if isinstance(error, ValueError):
                return [RequestError(400, str(error))]
            _log.exception("the policy failed")
            return [RequestError(500, f"the policy failed with {type(error).__name__}: {str(error)[:500]}")]
        infer = time.perf_counter() - began
        self._metrics.batch(len(batch))
        for stage, seconds in {**stages, "infer": infer}.items():
            self._metrics.stage(stage, seconds)
        return [
            Answer(row, stages, began - waiting.since, infer, len(batch))
            if np.isfinite(row).all()
            else RequestError(
                500,
                "the policy's actions have NaN or Inf, which are not sent to a robot: check its weights and statistics",
            )
            for waiting, row in zip(batch, values, strict=True)
        ]


def _policy_ended() -> RequestError:
    return RequestError(503, "the policy has stopped: restart the server")


def _settle(answer: asyncio.Future[Answer], outcome: Answer | RequestError) -> None:
    if answer.done():
        return
    if isinstance(outcome, RequestError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
