"""Resumable checkpoints: `checkpoints/step-N/`, whole or absent, checked before they are used.

    manifest.json            sizes and SHA-256 of the other files; written last
    state.json               progress, and what a resumed run must have in common with this one
    tuner.safetensors        everything trained
    optimiser.safetensors    moments by parameter name
    best.safetensors         everything trained, at the best evaluation (only with `select: best`)
    history.jsonl            the records so far

Never the frozen weights, and no generator states: every draw is a function of (seed, step).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gistcli import atomic
from gistcli.errors import WeightsError

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass
class Progress:
    """How far training has come; all that is not a tensor.

    Attributes:
        step: optimiser steps taken; epoch and batch within it follow from it.
        examples: examples seen.
        train_seconds: spent in steps, over all sessions.
        seconds: spent in all, evaluations and checkpoints included, over all sessions.
        evaluated: step of the last evaluation.
        best_step: step of the best evaluation; None before the first.
        best_value: the metric there.
        best_metrics: all figures there.
        stale: evaluations since the best one.
        stopped: why training ended before its last step.
    """

    step: int = 0
    examples: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    evaluated: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    stopped: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The content of one checkpoint folder.

    Attributes:
        progress: where training stands.
        identity: what a resumed run must share (seed, batch size, data, ...).
        tuner: everything trained, by name.
        optimiser: as `optim.optimiser_state` gives it.
        best: everything trained, at the best evaluation.
        history: the records so far.
    """

    progress: Progress
    identity: Mapping[str, Any]
    tuner: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    best: Mapping[str, Tensor] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step}"


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 1) -> Path:
    """Writes `folder/step-N` whole, then removes all but the newest `keep`.

    Raises:
        StorageError: the disk is full; the earlier checkpoints are as they were.
    """
    path = step_folder(folder, checkpoint.progress.step)
    with atomic.atomic_directory(path, overwrite=True) as new:
        _save(checkpoint.tuner, new / "tuner.safetensors")
        _save(checkpoint.optimiser, new / "optimiser.safetensors")
        if checkpoint.best is not None:
            _save(checkpoint.best, new / "best.safetensors")
        state = {"progress": vars(checkpoint.progress), "identity": dict(checkpoint.identity)}
        (new / "state.json").write_text(json.dumps(state, indent=2))
        lines = "".join(json.dumps(record) + "\n" for record in checkpoint.history)
        (new / "history.jsonl").write_text(lines)
        files = {
            p.name: {"size": p.stat().st_size, "sha256": atomic.sha256(p)}
            for p in sorted(new.iterdir())
        }
        manifest = {"format": FORMAT, "files": files}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2))
    for old in step_folders(folder)[max(keep, 1) :]:
        atomic.discard(old)
    return path


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Saves copies on the CPU; `save_file` refuses views and shared storage."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


def step_folders(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first; what is not one is left out."""
    if not folder.is_dir():
        return []
    found = [(p, re.fullmatch(r"step-(\d+)", p.name)) for p in folder.iterdir() if p.is_dir()]
    return [p for p, m in sorted(found, key=lambda f: -int(f[1][1]) if f[1] else 0) if m]


def fault(path: Path) -> str:
    """What is wrong with a checkpoint folder, checked against its manifest; empty if nothing is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
        for name, entry in manifest["files"].items():
            file = path / name
            if file.stat().st_size != entry["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {entry['size']}"
            if atomic.sha256(file) != entry["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return ""


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest folder that is whole; damaged ones are named to `warn` and passed over."""
    for path in step_folders(folder):
        problem = fault(path)
        if not problem:
            return path
        warn(f"The checkpoint {path} is damaged ({problem}); an earlier one is used if there is.")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """The content of a checkpoint folder.

    Raises:
        WeightsError: it is damaged.
    """
    problem = fault(path)
    if problem:
        raise WeightsError(
            f"The checkpoint {path} is damaged: {problem}.", "Use an earlier one, or start anew."
        )
    try:
        state = json.loads((path / "state.json").read_text())
        best = path / "best.safetensors"
        lines = (path / "history.jsonl").read_text().splitlines()
        return Checkpoint(
            progress=Progress(**state["progress"]),
            identity=state["identity"],
            tuner=load_file(path / "tuner.safetensors"),
            optimiser=load_file(path / "optimiser.safetensors"),
            best=load_file(best) if best.exists() else None,
            history=[json.loads(line) for line in lines],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(
            f"The checkpoint {path} cannot be read: {error}.", "Start anew with --resume never."
        ) from error
