"""The Accelerator that the loop runs on, and the trackers that go through it."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from gistcli.errors import Refused, UnknownName, did_you_mean

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed, all of them in one message.

    Raises:
        UnknownName: no such tracker.
        Refused: its package is missing; the hint is the line that installs it.
    """
    unknown = [n for n in names if n not in TRACKERS]
    if unknown:
        raise UnknownName(
            f"output.report_to: {', '.join(map(repr, unknown))} is no tracker.",
            did_you_mean(unknown[0], TRACKERS),
        )
    missing = [n for n in names if importlib.util.find_spec(n) is None]
    if missing:
        raise Refused(
            f"output.report_to: not installed: {', '.join(missing)}.",
            f"Run `pip install {' '.join(missing)}`, or leave it out: metrics.jsonl stays.",
        )


def open_accelerator(
    device: torch.device,
    precision: str = "fp32",
    *,
    trackers: Sequence[str] = (),
    folder: Path | None = None,
    name: str = "run",
    config: Mapping[str, Any] | None = None,
) -> Accelerator:
    """The engine of one `fit`, for a device and `fp32` or `bf16` autocast.

    Args:
        device: where to compute.
        precision: as `choose_precision` gives it.
        trackers: names out of TRACKERS; they are started here and closed by `fit`'s recorder.
        folder: where trackers that write files put them; needed with trackers.
        name: what trackers call the run.
        config: the run's settings, for trackers; nested keys become `a.b`.

    Raises:
        UnknownName, Refused: see `require_trackers`.
    """
    require_trackers(trackers)
    # accelerate keeps device and precision in process-wide state that refuses a second value
    if not (PartialState._shared_state and PartialState().use_distributed):
        AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=list(trackers) or None,
        project_dir=str(folder) if folder else None,
    )
    if trackers:
        assert folder is not None, "trackers need a folder"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"wandb": {"name": name, "dir": str(folder)}, "trackio": {"name": name}}
        with contextlib.redirect_stdout(sys.stderr):  # trackio prints; stdout is for results
            accelerator.init_trackers(
                "gist",
                config=_flat(config or {}),
                init_kwargs={n: s for n, s in settings.items() if n in trackers},
            )
    return accelerator


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b` keys with plain values, the form that every tracker takes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            flat[f"{prefix}{key}"] = value if plain else str(value)
    return flat
