"""A reporter that keeps what is said."""

from __future__ import annotations

from gistcli.reporting import Reporter


class Listener(Reporter):
    """Keeps lines, warnings among them, and the names of phases."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.phases: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")

    def start(self, phase: str, total: int, unit: str = "steps") -> None:
        self.phases.append(phase)
