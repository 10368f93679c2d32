"""Treatment of a request, from any protocol."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from starlette.requests import ClientDisconnect, HTTPConnection

from vlm_vision.robot.observation import Observation
from vlm_vision.robot.policy import Policy
from vlm_vision.serve.admission import RateLimits, check_token
from vlm_vision.serve.batching import Answer, Batcher
from vlm_vision.serve.errors import RequestError
from vlm_vision.serve.journal import Journal
from vlm_vision.serve.key_map import KeyMap
from vlm_vision.serve.metrics import Metrics
from vlm_vision.serve.settings import ServerSettings

_log = logging.getLogger(__name__)


class RequestHandler:
    """Reads, checks, queues and counts.

    Raises:
        ValueError: keys of the settings that the policy cannot use.
    """

    def __init__(self, policy: Policy, settings: ServerSettings) -> None:
        self.spec, self.settings, self.metrics = policy.spec, settings, Metrics()
        self.keys = KeyMap.of(policy.spec, settings.keys)
        self.batcher = Batcher(policy, settings, self.metrics)
        self.journal = Journal()
        self._rates = RateLimits(settings.rate)
        self._in_flight, self._idle = 0, asyncio.Event()
        self._idle.set()

    def refused(self, protocol: str, connection: HTTPConnection, error: RequestError) -> None:
        """Count a refusal, and log it."""
        self.metrics.request(protocol, error.status)
        address = connection.client.host if connection.client else "unknown"
        self.journal.write(f"{address} {protocol}: refused with {error.status}: {str(error)[:300]}")

    async def admit(self, connection: HTTPConnection) -> None:
        """Let a client pass that has the token and stays within the rate; wrong tokens count too.

        Raises:
            RequestError: 401, 403 or 429.
        """
        await self.within(connection)
        headers = connection.headers
        check_token(headers.get("authorization"), headers.get("origin"), self.settings.token)

    async def within(self, connection: HTTPConnection) -> None:
        """Raises RequestError for an address that asks too often, after a moment, so that refusing costs no more than answering."""
        rate = self._rates.of(connection.client.host if connection.client else "")
        if not rate.take():
            await asyncio.sleep(min(1 / rate.rate, 1.0))
            raise rate.request_error

    async def answer(self, read: Callable[[], Observation], gone: Coroutine[Any, Any, None]) -> Answer:
        """Actions for the observation that `read` gives; it may take its time, and raise.

        Args:
            gone: ends when the client leaves, and with it this work.

        Raises:
            RequestError: there are none, and why.
            ClientDisconnect: there is nobody to answer.
        """
        working, leaving = asyncio.create_task(self._answer(read)), asyncio.create_task(gone)
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientDisconnect
            return working.result()
        finally:
            working.cancel()
            leaving.cancel()

    async def _answer(self, read: Callable[[], Observation]) -> Answer:
        try:
            observation = await asyncio.to_thread(read)
        except ValueError as error:
            raise RequestError(400, str(error)) from None
        except Exception as error:  # whatever else a message does to its reading, its sender is told
            _log.exception("a message could not be read")
            raise RequestError(
                500, f"reading the message failed with {type(error).__name__}: {str(error)[:500]}"
            ) from None
        answer = await self.batcher.act(observation)
        self.metrics.stage("queue", answer.queue)
        return answer

    @contextmanager
    def in_flight(self, began: float) -> Iterator[None]:
        """From a request's arrival until its answer is sent: `close` waits for it."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.stage("total", time.perf_counter() - began)
            if not self._in_flight:
                self._idle.set()

    async def close(self) -> None:
        """Refuse what comes; answer what is here, for at most `grace_s`, and write the answers, for at most `stall_s`."""
        await self.batcher.close(self.settings.grace_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.stall_s):
                await self._idle.wait()
