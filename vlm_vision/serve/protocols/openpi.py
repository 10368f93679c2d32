"""The websocket of openpi's client (openpi-client, WebsocketClientPolicy).

The server speaks first: what the policy is. Then one message for each observation, one for each answer; text instead of
bytes is a refusal, which that client raises. The connection stays open after it.
"""

import asyncio
import time
from functools import partial

from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from vlm_vision.robot.observation import Observation
from vlm_vision.serve.batching import Answer
from vlm_vision.serve.errors import RequestError
from vlm_vision.serve.handler import RequestHandler
from vlm_vision.serve.protocols.msgpack_arrays import pack, unpack


async def serve_websocket(socket: WebSocket, handler: RequestHandler) -> None:
    """The connection of one client."""
    try:
        await handler.admit(socket)
    except RequestError as request_error:
        handler.refused("websocket", socket, request_error)
        await socket.send_denial_response(PlainTextResponse(f"{request_error}\n", request_error.status))
        return
    try:
        await socket.accept()
        handler.journal.write(f"{socket.client.host if socket.client else 'unknown'} websocket: connected")
        await socket.send_bytes(pack(_metadata(handler)))
        await _answer_messages(socket, handler)
    except (WebSocketDisconnect, ClientDisconnect):
        return


async def _answer_messages(socket: WebSocket, handler: RequestHandler) -> None:
    before: float | None = None
    coming = asyncio.create_task(socket.receive())
    try:
        while (message := await coming)["type"] == "websocket.receive":
            began = time.perf_counter()
            coming = asyncio.create_task(socket.receive())
            with handler.in_flight(began):
                try:
                    await handler.within(socket)
                    read = partial(_observation, handler, message.get("bytes"))
                    answer = await handler.answer(read, _gone(coming))
                except RequestError as request_error:
                    handler.refused("websocket", socket, request_error)
                    await socket.send_text(str(request_error))
                    continue
                handler.metrics.request("websocket", 200)
                await socket.send_bytes(pack(_reply(answer, time.perf_counter() - began, before)))
                before = time.perf_counter() - began
    finally:
        coming.cancel()


async def _gone(coming: asyncio.Task[Message]) -> None:
    """Ends when the client leaves: never, if what comes is its next message."""
    if (await asyncio.shield(coming))["type"] == "websocket.receive":
        await asyncio.Event().wait()


def _observation(handler: RequestHandler, data: bytes | None) -> Observation:
    if data is None:
        raise ValueError("the message is text: expected msgpack in a binary message")
    return handler.keys.observation(unpack(data))


def _reply(answer: Answer, total: float, before: float | None) -> dict[str, object]:
    server = {"infer": answer.infer, "queue": answer.queue, "total": total} | (
        {} if before is None else {"prev_total": before}
    )
    return {
        "actions": answer.actions,
        "server_timing": {**_milliseconds(server), "batch_size": answer.batch},
        "policy_timing": _milliseconds({"infer": answer.infer, **answer.stages}),
    }


def _milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {f"{name}_ms": 1000 * value for name, value in seconds.items()}


def _metadata(handler: RequestHandler) -> dict[str, object]:
    spec = handler.spec
    return {
        "cameras": list(spec.cameras),
        "state_dim": spec.state_dim,
        "action_dim": spec.action_dim,
        "action_names": list(spec.action_names),
        "chunk": spec.chunk,
        "fps": spec.fps,
        "statistics": handler.settings.statistics,
        "keys": {key: target for key, target in handler.keys.targets.items() if target},
    }
