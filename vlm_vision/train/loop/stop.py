"""Ctrl-C and SIGTERM while a run trains: a checkpoint before the next step, one sentence, and the exit code of the signal."""

import signal
import sys
import threading
from types import FrameType
from typing import Any, Self


class StopSignal:
    """A context that notes SIGINT and SIGTERM instead of raising; a second one ends the process as it would elsewhere.

    It acts in the main thread alone, since others cannot set handlers.
    """

    def __init__(self) -> None:
        self.number = 0
        """Number of the signal; 0 for none."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()

    def end(self, sentence: str) -> None:
        """Raise SystemExit with the exit code of the signal, after a sentence on standard error."""
        print(f"\n{sentence}", file=sys.stderr)
        raise SystemExit(128 + self.number)
