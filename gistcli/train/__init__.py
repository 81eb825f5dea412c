"""The training loop, its optimiser, schedule and checkpoints."""

from gistcli.train.engine import open_accelerator, require_trackers
from gistcli.train.loop import FitResult, fit
from gistcli.train.plan import OptimPlan, Plan
from gistcli.train.precision import choose_device, choose_precision
from gistcli.train.recorder import LogRecorder, Recorder, Recorders, TrackerRecorder

__all__ = [
    "FitResult",
    "LogRecorder",
    "OptimPlan",
    "Plan",
    "Recorder",
    "Recorders",
    "TrackerRecorder",
    "choose_device",
    "choose_precision",
    "fit",
    "open_accelerator",
    "require_trackers",
]
