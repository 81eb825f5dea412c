"""Interruptions that Python would lose."""

from __future__ import annotations

import signal
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Iterator
from contextlib import contextmanager

DELAY = 0.1
"""Seconds until an interruption comes again: by then the callback that it fell into is over."""


@contextmanager
def redelivered() -> Iterator[None]:
    """Inside, a KeyboardInterrupt that is raised where Python drops exceptions is raised again.

    The handler of a signal runs between any two instructions of the main thread, and some of them
    stand in callbacks of weak references and of the garbage collector, or in `__del__`, out of
    which no exception comes. Building a network on torch's meta device makes thousands of such
    calls; one interruption in sixty of a sweep was lost in one, and the sweep went on.
    """
    before = sys.unraisablehook
    pending: list[object] = []

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        pending.append(lost.exc_type)
        start_new_thread(again, ())  # threading's would wait here, in which the next one is lost

    def again() -> None:
        time.sleep(DELAY)
        if pending:
            pending.clear()
            _interrupt()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        still = bool(pending)
        pending.clear()
    if still:
        raise KeyboardInterrupt


def _interrupt() -> None:
    """Send SIGINT to the main thread, unless one was noted since and the next would kill."""
    main = threading.main_thread().ident
    if main is not None and callable(signal.getsignal(signal.SIGINT)):
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, signal.SIGINT)  # also wakes it where it waits
        else:
            signal.raise_signal(signal.SIGINT)
