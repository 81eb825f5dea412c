"""Run directories and sweeps as the real writers write them, with outcomes that a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gistcli.artifacts.ledger import Ledger, PlannedRun
from gistcli.artifacts.predictions import write_predictions
from gistcli.artifacts.rundir import RunDirectory
from gistcli.evaluate.metrics import wilson
from gistcli.recipe import Recipe

MakeRun = Callable[..., Path]
MakeSweep = Callable[..., Path]


def recipe_of(method: str, task: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A resolved recipe; other keys as `section__key=value`."""
    tree: dict[str, Any] = {
        "seed": seed,
        "task": {"name": task},
        "model": {"name": "gist_vit_nano"},
        "data": {"path": f"data/{task}"},
        "method": {"name": method},
        "optim": {"lr": 1e-3},
    }
    for key, value in changes.items():
        name, _, inner = key.partition("__")
        if inner:
            tree.setdefault(name, {})[inner] = value
        else:
            tree[name] = value
    return Recipe.model_validate(tree).as_dict()


def write_run(
    path: Path,
    *,
    method: str = "gift",
    task: str = "digits",
    seed: int = 0,
    right: Sequence[int] = (1, 1, 1, 0),
    parameters: int = 512,
    names: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    fingerprints: dict[str, str] | None = None,
    extras: dict[str, float] | None = None,
    curve: Sequence[float] = (),
    finished: bool = True,
    split: str = "test",
    **changes: Any,
) -> Path:
    """A run that got `right` of its test examples right."""
    run = RunDirectory.create(path)
    run.write_recipe(recipe_of(method, task, seed, **changes))
    run.write_environment(["gist", "finetune"], "cpu")
    for step, value in enumerate(curve, start=1):
        run.log.append({"kind": "eval", "step": 10 * step, "epoch": step, "val/accuracy": value})
    if not finished:
        return path
    correct = np.asarray(right, dtype=int)
    n = len(correct)
    names = list(names) if names is not None else [f"e{i:05d}" for i in range(n)]
    label = np.asarray(labels if labels is not None else np.arange(n) % 3)
    guess = np.where(correct == 1, label, (label + 1) % 3)
    chances = torch.full((n, 3), 0.1)
    chances[torch.arange(n), torch.from_numpy(guess)] = 0.8
    write_predictions(
        run.predictions_path(split), names, torch.from_numpy(label), chances, ["ant", "bee", "cat"]
    )
    examples = sha256(f"{task} {sorted(zip(names, label.tolist(), strict=True))}".encode())
    run.write_result(
        {
            "metrics": {f"{split}/accuracy": float(correct.mean()), f"{split}/loss": 0.25},
            "intervals": {f"{split}/accuracy": list(wilson(int(correct.sum()), n))},
            "examples": {"train": 20, split: n},
            "method": f"{method} + gist" if changes.get("gist") is not None else method,
            "parameters": {
                "method": parameters,
                "gist": 8 if parameters else 0,
                "head": 30,
                "trainable": 30,
                "total": 9,
            },
            "seconds": 2.0 + seed,
            "peak_memory_bytes": 2**28,
            "data_fingerprints": (
                {split: examples.hexdigest(), "train": f"{task}-{seed}"}
                if fingerprints is None
                else fingerprints
            ),
            "extras": extras or {},
        }
    )
    return path


def write_sweep(
    path: Path,
    runs: Sequence[PlannedRun],
    skip: Sequence[str] = (),
    recipes: dict[str, dict[str, Any]] | None = None,
    **common: Any,
) -> Path:
    """A ledger whose runs are done but for those of `skip`; `recipes` by id go to `write_run`."""
    ledger = Ledger.create(path, {"recipes": ["family.yaml"]}, list(runs))
    for run in runs:
        if run.id not in skip:
            options = {**common, **(recipes or {}).get(run.id, {})}
            task = {"task": run.task} if run.task else {}
            name, plus, _ = run.method.partition("+gist")
            gist = {"gist": {}} if plus else {}
            write_run(
                ledger.directory(run).path, method=name, seed=run.seed, **task, **gist, **options
            )
    return path


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    return write_run


@pytest.fixture(scope="session")
def make_sweep() -> MakeSweep:
    return write_sweep
