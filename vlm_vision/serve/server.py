"""The server of a policy: its socket, its run and its shutdown, which answers open requests and refuses new ones."""

import asyncio
import math
import signal
import socket
from types import FrameType

import uvicorn

from vlm_vision.robot.policy import Policy
from vlm_vision.serve.app import application
from vlm_vision.serve.handler import RequestHandler
from vlm_vision.serve.settings import ServerSettings
from vlm_vision.serve.timeouts import GuardedHttp, GuardedWebsocket


class PolicyServer:
    """Listens from its creation; answers while `run` runs.

    Raises:
        ValueError: keys of the settings that the policy cannot use.
        OSError: the address is taken, or no address of this machine.
    """

    def __init__(self, policy: Policy, settings: ServerSettings) -> None:
        self._socket = _listen(settings.host, settings.port)
        try:
            handler = RequestHandler(policy, settings)
        except ValueError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(_config(handler), handler)

    def run(self) -> None:
        """Serve until `stop`, or in the main thread SIGTERM or SIGINT; a SIGINT after that does not wait for anything."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """From any thread: answer what is in flight, refuse what comes, and end."""
        self._server.should_exit = True


def serve(policy: Policy, settings: ServerSettings) -> None:
    """Serve a policy until the process gets SIGTERM or SIGINT. Raises what `PolicyServer` raises."""
    server = PolicyServer(policy, settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{server.port}"
    print(f"serving cameras {', '.join(policy.spec.cameras)}: ws://{address}, http://{address}/act", flush=True)
    server.run()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, handler: RequestHandler) -> None:
        super().__init__(config)
        self._handler = handler

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As in uvicorn, but the signal is not raised again at the end: the exit code is 0."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close after the last answer has left; at once after a second SIGINT."""
        for server in self.servers:
            server.close()
        ending = asyncio.create_task(self._end(sockets))
        while not (self.force_exit or ending.done()):
            await asyncio.wait([ending], timeout=0.1)
        if ending.done():
            return ending.result()
        ending.cancel()
        for connection in [*self.server_state.connections]:
            connection.transport.abort()
        await self._handler.batcher.close(0)
        await asyncio.wait([ending, *self.server_state.tasks], timeout=1)

    async def _end(self, sockets: list[socket.socket] | None) -> None:
        await self._handler.close()
        await super().shutdown(sockets)  # closes each connection once what was written to it is taken


def _config(handler: RequestHandler) -> uvicorn.Config:
    settings = handler.settings

    class Http(GuardedHttp):
        stall_s, max_connections = settings.stall_s, settings.max_connections
        max_per_address = settings.max_per_address

    class Websocket(GuardedWebsocket):
        stall_s = settings.stall_s

    return uvicorn.Config(
        application(handler),
        http=Http,
        ws=Websocket,
        loop="asyncio",
        lifespan="off",
        ws_max_size=settings.max_bytes,
        ws_per_message_deflate=False,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        log_level="error",
        timeout_graceful_shutdown=math.ceil(settings.stall_s),
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): choose another port with --port"
        ) from error
