"""Where the figures of training go: the JSONL log, and trackers."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from accelerate import Accelerator


class Recorder(Protocol):
    """Receives one flat dict a step and one an evaluation."""

    def record(self, values: Mapping[str, Any]) -> None:
        """Keeps a record; `kind` is train or eval and `step` counts the steps taken."""

    def rewind(self, step: int) -> None:
        """Drops the records of later steps: training goes on from `step`."""

    def close(self) -> None:
        """Nothing more comes."""


class Recorders:
    """Several recorders as one; none at all is a recorder that keeps nothing."""

    def __init__(self, recorders: Iterable[Recorder] = ()) -> None:
        self.recorders = tuple(recorders)

    def record(self, values: Mapping[str, Any]) -> None:
        """Hands the record to each."""
        for recorder in self.recorders:
            recorder.record(values)

    def rewind(self, step: int) -> None:
        """Has each drop what is later."""
        for recorder in self.recorders:
            recorder.rewind(step)

    def close(self) -> None:
        """Closes each."""
        for recorder in self.recorders:
            recorder.close()


class Log(Protocol):
    """An append-only log on disk that can be cut back (`artifacts.MetricsLog`)."""

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record."""

    def rewind(self, step: int) -> None:
        """Drops the records of later steps."""


class LogRecorder:
    """A log on disk as a recorder."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def record(self, values: Mapping[str, Any]) -> None:
        """Appends the record."""
        self.log.append(values)

    def rewind(self, step: int) -> None:
        """Cuts the log back."""
        self.log.rewind(step)

    def close(self) -> None:
        """Does nothing: every record is on disk already."""


class TrackerRecorder:
    """accelerate's trackers (TensorBoard, wandb, trackio, mlflow) as a recorder.

    Trackers cannot take figures back: after a resume the repeated steps appear twice there.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def record(self, values: Mapping[str, Any]) -> None:
        """Logs all figures but the step itself, at that step."""
        figures = {
            k: v for k, v in values.items() if isinstance(v, int | float) and k not in ("step",)
        }
        self.accelerator.log(figures, step=int(values["step"]))

    def rewind(self, step: int) -> None:
        """Does nothing: trackers only append."""

    def close(self) -> None:
        """Lets the trackers finish their files and uploads."""
        with contextlib.redirect_stdout(sys.stderr):  # trackio prints; stdout is for results
            self.accelerator.end_training()
            if any(tracker.name == "trackio" for tracker in self.accelerator.trackers):
                # else its exit hook finishes, and prints, a second time
                importlib.import_module("trackio").finish()
