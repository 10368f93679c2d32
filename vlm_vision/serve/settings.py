"""Settings of the server: address, access and limits."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TOKEN_VARIABLE = "VLM_VISION_TOKEN"
_MOST = 1_000_000
"""Largest time or size: clocks take neither infinity nor much larger numbers."""


@dataclass(frozen=True)
class ServerSettings:
    """Checked when made.

    Args:
        host, port: where to listen; port 0 takes a free one.
        token: what clients must show; empty for none, which only loopback allows.
        no_token: serve to other machines without one all the same.
        statistics: name of those that the policy was loaded with; what a client's `unnorm_key` must equal.
        keys: a client's key -> the camera that it is, "instruction", "state", or "" to ignore it; see `KeyMap`.
        max_batch: observations in one call of the policy.
        max_wait_ms: how long the first of a batch waits for others while the policy is idle.
        max_queue: observations that may wait; more are refused.
        max_connections: open at once, and from one address half of them, open websockets aside; more are refused.
        max_per_address: open at once from one address, websockets included; more are refused, so that one client leaves
            others room.
        max_message_mb: size of one message, in 2**20 bytes.
        rate: requests a second from one address, over websockets and HTTP together, those without the token and the opening
            of a websocket included; that many may come at once.
        stall_s: a message must have arrived, and an answer been taken, within so many seconds.
        grace_s: how long requests in flight may take when the server is stopped.

    Raises:
        ValueError: a number out of its range, another machine's address without a token, an unusable token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    no_token: bool = False
    statistics: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    max_batch: int = 8
    max_wait_ms: float = 2.0
    max_queue: int = 64
    max_connections: int = 64
    max_per_address: int = 32
    max_message_mb: float = 16.0
    rate: float = 100.0
    stall_s: float = 10.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_connections", "max_per_address"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("max_message_mb", "rate", "stall_s"):
            if not 0 < getattr(self, name) <= _MOST:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be more than 0 and at most {_MOST}")
        for name in ("max_wait_ms", "grace_s"):
            if not 0 <= getattr(self, name) <= _MOST:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0 and at most {_MOST}")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port is {self.port}: it must be from 0 to 65535")
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise ValueError(
                "the token has characters that a header cannot contain: use ASCII letters, digits and punctuation"
            )
        if not (self.token or self.no_token or _is_loopback(self.host)):
            raise ValueError(
                f"host is {self.host}, which other machines reach, and there is no token: set one with --token-file or "
                f"{TOKEN_VARIABLE}, or pass --no-token"
            )

    @property
    def max_bytes(self) -> int:
        return int(self.max_message_mb * 2**20)


def read_token(file: str | os.PathLike[str] | None) -> str:
    """The token in a file, else in the environment, else none: "".

    Raises:
        ValueError: the file is empty.
        OSError: it cannot be read.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    if not (token := Path(file).read_text(encoding="utf-8").strip()):
        raise ValueError(f"the token file {file} is empty: write a token into it")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
