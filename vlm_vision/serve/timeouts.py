"""Timeouts of uvicorn's protocols: a client that does not finish a message, or does not take an answer, is disconnected."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State


class _Deadline:
    """Calls `late` once `seconds` have gone by, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, late: Callable[[], None]) -> None:
        self._loop, self._seconds, self._late = loop, seconds, late
        self._timer: asyncio.TimerHandle | None = None

    def run(self, wanted: bool) -> None:
        """Start it unless it runs, or stop it."""
        if wanted and self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._late)
        elif not wanted and self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _TimedProtocol(asyncio.Protocol):
    """A client that does not take an answer is disconnected; the timers of a connection stop with it."""

    _arriving: _Deadline
    _leaving: _Deadline

    def pause_writing(self) -> None:
        super().pause_writing()
        self._leaving.run(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._leaving.run(False)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._arriving.run(False)
        self._leaving.run(False)


class GuardedHttp(_TimedProtocol, H11Protocol):
    """A request must be here, head and body, within `stall_s` of its first byte, or of the connection's beginning.

    One address may have half of the connections, open websockets aside, so that none without a token keeps all others out.
    """

    stall_s: float
    max_connections: int
    max_per_address: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arriving = _Deadline(self.loop, self.stall_s, self._stalled)
        self._leaving = _Deadline(self.loop, self.stall_s, transport.abort)
        if len(self.connections) > self.max_connections:
            self._refuse(503, f"{self.max_connections} connections are open, the largest number: try again later")
        elif self._of_address(self.connections) > self.max_per_address:
            most = f"{self.max_per_address} connections of this address are open"
            self._refuse(503, f"{most}, the largest number (--max-per-address): close some, or try again later")
        elif self._neighbors > (most := max(self.max_connections // 2, 1)):
            self._refuse(
                503, f"{most} connections of this address are open, the largest number over HTTP: try again later"
            )
        else:
            self._arriving.run(True)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which may begin with a request that came with the last one
        self._watch()

    @property
    def _neighbors(self) -> int:
        """Connections from this address, this one included, that may be of a client without the token."""
        known = {one for one in self.connections if isinstance(one, GuardedWebsocket) and one.handshake_complete}
        return self._of_address(self.connections - known)

    def _of_address(self, connections: set[Any]) -> int:
        """Number of those from this address."""
        return [one.client and one.client[0] for one in connections].count(self.client and self.client[0])

    def _watch(self) -> None:
        state, rest = self.conn.their_state, self.conn.trailing_data[0]
        mine = self.transport.get_protocol() is self  # no websocket has taken over
        self._arriving.run(mine and (state is h11.SEND_BODY or (state is h11.IDLE and bool(rest))))

    def _stalled(self) -> None:
        self._refuse(408, f"the request was not complete after {self.stall_s:g} s: send it without a pause")

    def _refuse(self, status: int, sentence: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()),
                h11.Data(data=f"{sentence}\n".encode()),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class GuardedWebsocket(_TimedProtocol, WebSocketsSansIOProtocol):
    """A message, once begun, must be here within `stall_s`; between messages a client may wait as long as it likes."""

    stall_s: float

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arriving = _Deadline(self.loop, self.stall_s, self._stalled)
        self._leaving = _Deadline(self.loop, self.stall_s, self.transport.abort)

    def handle_events(self) -> None:
        came = bool(self.conn.events)
        super().handle_events()
        self._arriving.run(not self.read_paused and (self._partial or not came))

    async def receive(self):
        message = await super().receive()
        self._arriving.run(not self.read_paused and self._partial)
        return message

    def shutdown(self) -> None:
        if self.conn.state is State.OPEN or not self.handshake_complete:
            super().shutdown()
        else:  # the client said goodbye first, at which uvicorn's would raise
            self.stop_keepalive()
            self.transport.close()

    @property
    def _partial(self) -> bool:
        """Whether part of a frame, or frames without the last one, are here."""
        return bool(self.frames) or bool(self.conn.reader.buffer)

    def _stalled(self) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.fail(1008, f"the message was not complete after {self.stall_s:g} s: send it without a pause")
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()
