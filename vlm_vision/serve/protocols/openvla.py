"""HTTP interface of OpenVLA's server (openvla and openvla-oft, vla-scripts/deploy.py).

POST /act with an observation as JSON. One with the key `image` gets one action, the first of its chunk, as OpenVLA's
clients expect; any other a list of the chunk's actions, as OFT's do. Times are in the header Server-Timing.
"""

import time

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from vlm_vision.robot.observation import Observation
from vlm_vision.serve.batching import Answer
from vlm_vision.serve.errors import RequestError
from vlm_vision.serve.handler import RequestHandler
from vlm_vision.serve.protocols.json_arrays import dumps, loads
from vlm_vision.serve.settings import ServerSettings


async def act(request: Request, handler: RequestHandler) -> Response:
    """One request."""
    began = time.perf_counter()
    with handler.in_flight(began):
        try:
            await handler.admit(request)
            question = _ActRequest(await _body(request, handler.settings), handler)
            answer = await handler.answer(question.read, _gone(request))
        except RequestError as request_error:
            handler.refused("http", request, request_error)
            return _json({"error": str(request_error)}, request_error.status)
        except ClientDisconnect:
            return Response(status_code=400)
        handler.metrics.request("http", 200)
        response = _json(question.reply(answer))
        response.headers["Server-Timing"] = _timing(answer, time.perf_counter() - began)
        return response


class _ActRequest:
    """A body, which is read in another thread, and what its sender expects back."""

    def __init__(self, body: bytes, handler: RequestHandler) -> None:
        self._body, self._handler = body, handler
        self._encoded = self._one_action = False

    def read(self) -> Observation:
        message = loads(self._body)
        if isinstance(message, dict) and "encoded" in message:
            if len(message) > 1 or not isinstance(message["encoded"], str):
                raise ValueError(
                    "a request with the key encoded has other keys, or a value that is not text: expected one text alone"
                )
            self._encoded, message = True, loads(message["encoded"])
        if not isinstance(message, dict):
            raise ValueError(f"the request is of type {type(message).__name__}: expected an object with keys")
        self._one_action = "image" in message
        self._check_statistics(message.pop("unnorm_key", None))
        return self._handler.keys.observation(message)

    def reply(self, answer: Answer) -> object:
        actions = answer.actions[0] if self._one_action else list(answer.actions)
        return dumps(actions) if self._encoded else actions

    def _check_statistics(self, name: object) -> None:
        known = self._handler.settings.statistics
        if name is not None and name != known:
            says = f"{known!r}: send this name" if known else "statistics without a name: remove unnorm_key"
            raise ValueError(f"unnorm_key is {str(name)[:80]!r}: this policy was started with {says}")


async def _body(request: Request, settings: ServerSettings) -> bytes:
    most = settings.max_bytes
    request_error = RequestError(
        413, f"the request is larger than {settings.max_message_mb:g} MiB: send smaller images"
    )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        raise request_error
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise request_error
    return bytes(body)


async def _gone(request: Request) -> None:
    """Ends when the client leaves; after the body."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: object, status: int = 200) -> Response:
    return Response(dumps(content), status, media_type="application/json")


def _timing(answer: Answer, total: float) -> str:
    seconds = {"queue": answer.queue, **answer.stages, "infer": answer.infer, "total": total}
    return ", ".join(f"{name};dur={1000 * value:.3f}" for name, value in seconds.items())
