"""The Reporter that draws: live bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from gistcli import __version__
from gistcli.console.progress import Phase, duration
from gistcli.console.streams import Unbreakable
from gistcli.console.tables import make_table
from gistcli.reporting import Reporter

PLAIN_WIDTH = 120
EVERY = 30.0
"""Seconds between two plain lines about one phase."""
AT_ONCE = 1.0
"""Seconds within which a phase ends without a word."""


def open_console(stream: TextIO) -> Console:
    """A rich console on a stream: colours on a terminal (unless NO_COLOR), plain text elsewhere."""
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


class ConsoleReporter(Reporter):
    """Talk on stderr. Use it as a context manager: leaving it takes the bars away.

    Args:
        stream: where to talk; None is stderr.
        clock: seconds, for tests.
    """

    def __init__(
        self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        safe = cast(TextIO, Unbreakable(stream or sys.stderr))
        self.console = open_console(safe)
        self._clock = clock
        self._phases: dict[str, Phase] = {}
        self._bars = _Bars(self.console) if safe.isatty() else None
        self._last_line: dict[str, float] = {}
        self._told: set[str] = set()

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *exception: object) -> None:
        """Takes the bars of whatever was under way off the screen."""
        if self._bars is not None:
            self._bars.close()

    def say(self, text: str) -> None:
        """One line, never wrapped, so that paths can be copied."""
        self._line(escape(text))

    def warn(self, text: str) -> None:
        """One line that begins with `warning`."""
        self._line(f"[yellow]warning:[/] {escape(text)}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table with its numbers to the right."""
        self.console.print(make_table(title, columns, rows))

    def start(self, phase: str, total: int, unit: str = "steps") -> None:
        """Shows a bar, or a first line unless this phase had one within the last 30 seconds."""
        self._phases[phase] = Phase(phase, total, unit, self._clock)
        if self._bars is not None:
            self._bars.show(self._phases[phase])
        elif self._due(phase):
            self._progress_line(phase, f"{phase}: {total:,} {unit}")

    def advance(self, phase: str, units: int = 1, **figures: float) -> None:
        """Moves the bar, or writes a line every 30 seconds."""
        current = self._phases[phase]
        current.advance(units, figures)
        if self._bars is not None:
            self._bars.show(current)
        elif self._due(phase) and current.done < current.total:
            self._progress_line(phase, current.line())

    def finish(self, phase: str) -> None:
        """Takes the bar away; one that was told of, or not for long, leaves a line."""
        current = self._phases.pop(phase)
        if self._bars is not None:
            self._bars.remove(phase)
        news = bool(current.figures) or current.seconds >= AT_ONCE
        if news and (phase in self._told or self._due(phase)):
            self._progress_line(phase, current.line())
        self._told.discard(phase)

    def _due(self, phase: str) -> bool:
        return self._clock() - self._last_line.get(phase, float("-inf")) >= EVERY

    def _progress_line(self, phase: str, text: str) -> None:
        self._last_line[phase] = self._clock()
        self._told.add(phase)
        self._line(escape(text))

    def _line(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)


class _Bars:
    """Live progress bars, shown while there are any."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, phase: Phase) -> None:
        """Draws a phase as it is now."""
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TextColumn("{task.completed:,}/{task.total:,} {task.fields[unit]}"),
                TextColumn("[dim]{task.fields[figures]}[/]"),
                TextColumn("[cyan]{task.fields[left]}[/]"),
                console=self._console,
                transient=True,
                refresh_per_second=4,
            )
            self._progress.start()
        if phase.name not in self._tasks or phase.done == 0:
            self._forget(phase.name)
            self._tasks[phase.name] = self._progress.add_task(
                escape(phase.name), total=phase.total, unit=phase.unit, figures="", left=""
            )
        self._progress.update(
            self._tasks[phase.name],
            completed=phase.done,
            figures=escape(phase.described()),
            left=phase.left() or duration(phase.seconds),
        )

    def remove(self, name: str) -> None:
        """Takes a phase off; without any left the screen is as before."""
        self._forget(name)
        if not self._tasks:
            self.close()

    def close(self) -> None:
        """Takes everything off."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}

    def _forget(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None and self._progress is not None:
            self._progress.remove_task(task)


@contextmanager
def working(command: str) -> Iterator[ConsoleReporter]:
    """The reporter of a command, whose first line is out before anything heavy is imported."""
    with ConsoleReporter() as reporter:
        reporter.say(f"gist {__version__} {command}")
        yield reporter
