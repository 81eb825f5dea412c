"""Stopping on request: signals and the time limit, noticed between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Halt(BaseException):
    """Raised by a signal inside `Stopper.at_once`; never leaves the training loop."""


class Stopper:
    """While entered, the first SIGINT or SIGTERM asks training to stop; the second one kills.

    Outside the main thread, where Python allows no signal handlers, only the time limit acts.

    Args:
        max_time: seconds from entry until `reason` asks for an end; None is no limit.

    Attributes:
        signal: name of the one that came; None before.
    """

    def __init__(self, max_time: float | None = None) -> None:
        self.max_time = max_time
        self.signal: str | None = None
        self._at_once = False
        self._before: dict[signal.Signals, object] = {}
        self._start = 0.0

    def __enter__(self) -> Stopper:
        self._start = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._notice) for s in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def reason(self, *, advanced: bool = True) -> str | None:
        """Why training should stop now, or None.

        Args:
            advanced: whether this session has done a step; before that the time limit does not
                act, so that a limit that is too short for a step still comes to an end some day.
        """
        if self.signal:
            return self.signal
        if (
            advanced
            and self.max_time is not None
            and time.monotonic() - self._start >= self.max_time
        ):
            return f"train.max_time ({self.max_time:g} s)"
        return None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A signal inside raises Halt instead of waiting; for work that can be thrown away."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self._at_once:
            raise Halt
