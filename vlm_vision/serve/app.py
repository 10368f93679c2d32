"""Routes of the server: the websocket at any path, POST /act, health and metrics."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from vlm_vision.serve.errors import RequestError
from vlm_vision.serve.handler import RequestHandler
from vlm_vision.serve.metrics import MEDIA_TYPE
from vlm_vision.serve.protocols import openpi, openvla


def application(handler: RequestHandler) -> Starlette:
    """An ASGI application."""

    async def websocket(socket: WebSocket) -> None:
        await openpi.serve_websocket(socket, handler)

    async def act(request: Request) -> Response:
        return await openvla.act(request, handler)

    async def health(_: Request) -> Response:
        return PlainTextResponse("OK\n") if handler.batcher.running else PlainTextResponse("stopping\n", 503)

    async def metrics(request: Request) -> Response:
        try:
            await handler.admit(request)
        except RequestError as request_error:
            return PlainTextResponse(f"{request_error}\n", request_error.status)
        return PlainTextResponse(handler.metrics.text(handler.batcher.length), media_type=MEDIA_TYPE)

    return Starlette(
        routes=[
            Route("/act", act, methods=["POST"]),
            Route("/health", health),
            Route("/healthz", health),
            Route("/metrics", metrics),
            WebSocketRoute("/{path:path}", websocket),
        ]
    )
