"""What is said of the runs of a sweep: a line each, and what nobody should miss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gistcli.artifacts.ledger import PlannedRun
from gistcli.reporting import Reporter


class RunReporter(Reporter):
    """Talk of one run among many: its progress and its warnings, each of these once a sweep.

    Args:
        inner: of the sweep.
        name: of the run.
        warned: warnings that were shown before; grows.
    """

    def __init__(self, inner: Reporter, name: str, warned: set[str]) -> None:
        self._inner = inner
        self._name = name
        self._warned = warned

    def warn(self, text: str) -> None:
        """Passed on unless another run said the same."""
        if text not in self._warned:
            self._warned.add(text)
            self._inner.warn(f"{self._name}: {text}")

    def start(self, phase: str, total: int, unit: str = "steps") -> None:
        """Passed on."""
        self._inner.start(phase, total, unit)

    def advance(self, phase: str, units: int = 1, **figures: float) -> None:
        """Passed on."""
        self._inner.advance(phase, units, **figures)

    def finish(self, phase: str) -> None:
        """Passed on."""
        self._inner.finish(phase)


def outcome(run: PlannedRun, result: Mapping[str, Any], metric: str) -> str:
    """The line about a run that ended well.

    Args:
        run: which.
        result: of the run.
        metric: without its split; test is shown where it was read, else val.
    """
    found = (f"{split}/{metric}" for split in ("test", "val"))
    shown = [f"{name} {result['metrics'][name]:.4f}" for name in found if name in result["metrics"]]
    return ", ".join([f"{run.id}: {shown[0]}" if shown else run.id, f"{result['seconds']:.1f} s"])


def why_left(waiting: int, missing: int, held: int) -> Iterator[str]:
    """Sentences about runs that this process could not do.

    Args:
        waiting: final runs whose candidates are not complete.
        missing: those candidates.
        held: runs that other processes have.
    """
    if waiting:
        yield (
            f"{waiting} final runs need {missing} candidates that other processes have: run the "
            "same command again when those are through."
        )
    if held:
        yield f"{held} runs are in the hands of other processes."
