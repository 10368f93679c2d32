"""What is where: the websocket at any path, POST /act, health and metrics."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from vlm_vision.serve.errors import Refusal
from vlm_vision.serve.handler import Desk
from vlm_vision.serve.metrics import MEDIA_TYPE
from vlm_vision.serve.protocols import openpi, openvla


def application(desk: Desk) -> Starlette:
    """An ASGI application."""

    async def websocket(socket: WebSocket) -> None:
        await openpi.talk(socket, desk)

    async def act(request: Request) -> Response:
        return await openvla.act(request, desk)

    async def health(_: Request) -> Response:
        return PlainTextResponse("OK\n") if desk.batcher.running else PlainTextResponse("stopping\n", 503)

    async def metrics(request: Request) -> Response:
        try:
            await desk.admit(request)
        except Refusal as refusal:
            return PlainTextResponse(f"{refusal}\n", refusal.status)
        return PlainTextResponse(desk.metrics.text(desk.batcher.length), media_type=MEDIA_TYPE)

    return Starlette(
        routes=[
            Route("/act", act, methods=["POST"]),
            Route("/health", health),
            Route("/healthz", health),
            Route("/metrics", metrics),
            WebSocketRoute("/{path:path}", websocket),
        ]
    )
