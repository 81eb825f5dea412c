"""What the library says while it works; the console decides how it looks."""

from __future__ import annotations

from collections.abc import Sequence


class Reporter:
    """Receives talk, tables and progress. This one is silent; `console` has the one that draws.

    The library never prints: it is handed a Reporter and tells it what happens.
    """

    def say(self, text: str) -> None:
        """One line of information."""

    def warn(self, text: str) -> None:
        """One line that the user should not miss."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A small table; cells are shown with `str`."""

    def start(self, phase: str, total: int, unit: str = "steps") -> None:
        """A phase of `total` units begins (a new one of the same name replaces the old)."""

    def advance(self, phase: str, units: int = 1, **figures: float) -> None:
        """`units` of the phase are done; `figures` (loss, accuracy, ...) are its latest values."""

    def finish(self, phase: str) -> None:
        """The phase is over."""


SILENT = Reporter()
