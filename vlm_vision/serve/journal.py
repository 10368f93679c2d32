"""One line in the log for a connection or a refusal, at a bounded rate."""

import logging
import time

log = logging.getLogger(__name__)


class Journal:
    """Writes lines, at most `rate` a second; the others are counted, and their number stands in a later line."""

    def __init__(self, rate: float = 5.0) -> None:
        self.rate = rate
        self._left, self._when, self._dropped = rate, time.monotonic(), 0

    def write(self, line: str) -> None:
        now = time.monotonic()
        self._left = min(self.rate, self._left + (now - self._when) * self.rate)
        self._when = now
        if self._left < 1:
            self._dropped += 1
            return
        self._left -= 1
        more = f" ({self._dropped} more lines before it were left out)" if self._dropped else ""
        self._dropped = 0
        log.info("%s%s", line.replace("\n", " "), more)
