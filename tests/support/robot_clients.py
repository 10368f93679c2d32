"""Robots' programs, as their own projects write them: openpi's wire format and OpenVLA's, and a policy to ask."""

import base64
import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager

import msgpack
import numpy as np
from websockets.sync.client import connect

from vlm_vision.robot.observation import Observation, PolicySpec
from vlm_vision.robot.policy import Actions
from vlm_vision.serve.server import PolicyServer
from vlm_vision.serve.settings import ServerSettings


class Arm:
    """A policy whose actions tell which observation they are of; `hold` makes it wait, words make it fail."""

    def __init__(self, **fields) -> None:
        self.spec = PolicySpec(**(dict(cameras=("top", "wrist"), action_dim=7, chunk=4, state_dim=3) | fields))
        self.batches: list[int] = []
        self.began, self.hold = threading.Event(), threading.Event()
        self.hold.set()

    def act(self, observations: Sequence[Observation]) -> Actions:
        self.began.set()
        self.batches.append(len(observations))
        assert self.hold.wait(20)
        for observation in observations:
            self.spec.check(observation)
            if observation.instruction == "crash":
                raise RuntimeError("out of memory\nin two lines")
            if observation.instruction == "exit":
                raise SystemExit("for good")
        values = np.stack([self.expected(observation) for observation in observations])
        return Actions(values, {"preprocess": 0.001, "encode": 0.002, "prefill": 0.003, "decode": 0.004})

    def expected(self, observation: Observation) -> np.ndarray:
        numbers = [np.asarray(image, dtype=np.float64).mean() for image in observation.images.values()]
        numbers += [len(observation.instruction), 0.0 if observation.state is None else observation.state.sum()]
        row = np.resize(numbers, self.spec.action_dim).astype(np.float32)
        if observation.instruction == "diverge":
            row[0] = np.nan
        return row + np.arange(self.spec.chunk, dtype=np.float32)[:, None]


@contextmanager
def running(policy, **settings):
    """A server on a free port, stopped at the end; at a rate for tests that ask until something is so."""
    server = PolicyServer(policy, ServerSettings(port=0, **({"rate": 10_000.0} | settings)))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        if isinstance(policy, Arm):
            policy.hold.set()
        server.stop()
        thread.join(15)
        assert not thread.is_alive()


def seen(seed: int = 0, **changes) -> dict[str, object]:
    """What openpi's client is given for an `Arm`; a change to None leaves the key out."""
    random = np.random.default_rng(seed)
    message = {
        "observation/top": random.integers(0, 256, (32, 40, 3), dtype=np.uint8),
        "observation/wrist": random.integers(0, 256, (24, 24, 3), dtype=np.uint8),
        "observation/state": random.normal(size=3),
        "prompt": "open the drawer",
    }
    return {key: value for key, value in (message | changes).items() if value is not None}


def observation(message: dict) -> Observation:
    images = {name: message[f"observation/{name}"] for name in ("top", "wrist")}
    return Observation(images, message["prompt"], message["observation/state"])


def packed(message: object) -> bytes:
    def array(value):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

    return msgpack.packb(message, default=array)


def unpacked(data: bytes):
    def array(found):
        if b"__ndarray__" not in found:
            return found
        return np.ndarray(buffer=found[b"data"], dtype=np.dtype(found[b"dtype"]), shape=found[b"shape"])

    return msgpack.unpackb(data, object_hook=array)


class Robot:
    """openpi's client, from an address of this machine: metadata on connecting, `infer`, text raised as an error."""

    def __init__(self, port: int, token: str = "", address: str = "127.0.0.1") -> None:
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        line = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(address, 0))
        self._open = connect(
            f"ws://127.0.0.1:{port}", sock=line, compression=None, max_size=None, additional_headers=headers
        )
        self.socket = self._open.__enter__()
        self.metadata = unpacked(self.socket.recv(10))

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def infer(self, message: dict) -> dict:
        return self.ask(packed(message))

    def ask(self, data: bytes | str) -> dict:
        self.socket.send(data)
        return self.take()

    def take(self) -> dict:
        answer = self.socket.recv(10)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return unpacked(answer)


def as_json(message: object) -> str:
    def array(value):
        return {
            "__numpy__": base64.b64encode(value.tobytes()).decode(),
            "dtype": value.dtype.str,
            "shape": value.shape,
        }

    return json.dumps(message, default=array)


def from_json(text: str | bytes):
    def array(found):
        if "__numpy__" not in found:
            return found
        return np.frombuffer(base64.b64decode(found["__numpy__"]), found["dtype"]).reshape(found["shape"])

    return json.loads(text, object_hook=array)


def http(port: int, path: str, body: str | bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
    """Status, body and headers of a GET, or of a POST where there is a body."""
    data = body.encode() if isinstance(body, str) else body
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def raw(port: int, *, websocket: bool = False) -> socket.socket:
    """A bare connection; past the handshake and the metadata where it is a websocket."""
    line = socket.create_connection(("127.0.0.1", port), timeout=10)
    if websocket:
        key = base64.b64encode(bytes(16)).decode()
        line.sendall(
            f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        got = b""
        while b"\r\n\r\n" not in got:
            got += line.recv(4096)
        if got.endswith(b"\r\n\r\n"):
            line.recv(4096)
    return line


def frame(data: bytes) -> bytes:
    """One binary message of a client, masked with zeros."""
    return struct.pack("!BBQ", 0x82, 0x80 | 127, len(data)) + bytes(4) + data


def rest(line: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    got = b""
    with line:
        while part := line.recv(4096):
            got += part
    return got


def sees(arm: Arm, message: dict) -> np.ndarray:
    """What an `Arm` answers to a message of `seen`."""
    return arm.expected(observation(message))


def wait_for(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
