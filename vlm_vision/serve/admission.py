"""Access to the server: the token, and the rate of requests."""

import hmac
import time
from collections import OrderedDict

from vlm_vision.serve.errors import RequestError

_SCHEMES = ("bearer", "api-key")


def check_token(header: str | None, origin: str | None, token: str) -> None:
    """Let a client with the token pass, compared in constant time; openpi's client says Api-Key, others Bearer.

    Without a token to show, a page in a browser, which says its origin, is not let pass: it would speak for whoever
    looked at it.

    Raises:
        RequestError: 401 or 403.
    """
    if not token:
        if origin is not None:
            raise RequestError(
                403, "pages in a browser are served only with a token: start the server with --token-file"
            )
        return
    scheme, _, shown = (header or "").partition(" ")
    if scheme.lower() not in _SCHEMES:
        raise RequestError(401, "a token is needed: send the header 'Authorization: Bearer TOKEN' or 'Api-Key TOKEN'")
    if not hmac.compare_digest(shown.strip().encode(), token.encode()):
        raise RequestError(401, "the token is wrong: send the token of this server")


class RateLimit:
    """A bucket of `rate` requests that fills again in a second.

    Args:
        rate: requests a second; at least one may always come at once.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._left, self._when = max(rate, 1.0), time.monotonic()

    def take(self) -> bool:
        """Whether one more is within the rate."""
        now = time.monotonic()
        self._left = min(max(self.rate, 1.0), self._left + (now - self._when) * self.rate)
        self._when = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    @property
    def request_error(self) -> RequestError:
        return RequestError(429, f"too many requests: at most {self.rate:g} a second are answered; ask less often")


class RateLimits:
    """One `RateLimit` for each address; those not heard of for longest are forgotten."""

    def __init__(self, rate: float, most: int = 4096) -> None:
        self._rate, self._most = rate, most
        self._of: OrderedDict[str, RateLimit] = OrderedDict()

    def of(self, address: str) -> RateLimit:
        found = self._of.pop(address, None) or RateLimit(self._rate)
        self._of[address] = found
        if len(self._of) > self._most:
            self._of.popitem(last=False)
        return found
