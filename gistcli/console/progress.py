"""Phases of work: how far, how fast, how long still."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_SETTLE = 5
"""Units after which the time left is told; the first ones are slow."""


@dataclass
class Phase:
    """One phase of a known length.

    Attributes:
        name: what is being done.
        total: units in all.
        unit: what is counted.
        done: units done.
        figures: the latest value of each figure.
    """

    name: str
    total: int
    unit: str = "steps"
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    _began: float = 0.0
    _first: tuple[float, int] | None = None

    def __post_init__(self) -> None:
        self._began = self.clock()

    def advance(self, units: int, figures: Mapping[str, float]) -> None:
        """`units` more are done."""
        self.done += units
        self.figures.update(figures)
        if self._first is None and self.done:
            # what a resumed run had done before, or the slow first unit, says nothing of the speed
            self._first = (self.clock(), self.done)

    @property
    def seconds(self) -> float:
        """Since the phase began."""
        return self.clock() - self._began

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None while it is too early to tell."""
        if self._first is None or self.done - self._first[1] < _SETTLE:
            return None
        then, start = self._first
        return (self.total - self.done) * (self.clock() - then) / (self.done - start)

    def described(self) -> str:
        """The latest figures in one line."""
        return ", ".join(f"{_label(k)} {_number(k, v)}" for k, v in self.figures.items())

    def left(self) -> str:
        """The time left in words, or nothing."""
        left = self.seconds_left
        return "" if left is None or self.done >= self.total else f"{duration(left)} left"

    def line(self) -> str:
        """All of it in one plain line."""
        parts = [f"{self.name}: {self.done:,}/{self.total:,} {self.unit}"]
        if self.done >= self.total:
            parts[0] += f" in {duration(self.seconds)}"
        return ", ".join(filter(None, (*parts, self.described(), self.left())))


def duration(seconds: float) -> str:
    """`4.2 s`, `1:05 min`, `2:07 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def number(value: float) -> str:
    """`1,234` and `0.116`: to three figures, and to the whole from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _label(name: str) -> str:
    return {"samples_per_s": "samples/s"}.get(name, name.replace("_", " "))


def _number(name: str, value: float) -> str:
    if name == "lr":
        return f"{value:.2g}"
    if "accuracy" in name:
        return f"{value:.1%}"
    return number(value)
