"""What two sessions of one training run must have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gistcli.errors import DataError, Refused
from gistcli.reporting import Reporter
from gistcli.train.plan import Plan
from gistcli.train.source import Source, data_fingerprint

ROUNDING = {"threads": "threads =", "micro_batch_size": "train.micro_batch_size ="}
"""What may differ between two sessions, and how it is called."""


def identify(plan: Plan, split: Source, total: int) -> dict[str, Any]:
    """All that the numbers of a step depend on, beside the network, as JSON values."""
    return {
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "total_steps": total,
        "select": plan.select,
        **{f"optim.{key}": value for key, value in asdict(plan.optim).items()},
        "data": data_fingerprint(split),
        "threads": torch.get_num_threads(),
    }


def require_same(
    then: Mapping[str, Any], now: Mapping[str, Any], path: Path, reporter: Reporter
) -> None:
    """Refuse to go on from a checkpoint of another run.

    Other threads or micro-batches, which change the order in which numbers are added up, only warn.

    Raises:
        DataError: the examples or their labels changed.
        Refused: the plan changed; all differences in one message.
    """
    if then.get("data") != now["data"]:
        raise DataError(
            f"The training data are not those that the checkpoint {path} was written with.",
            "Restore the data, or start anew with --resume never --overwrite.",
        )
    apart = [k for k in now if k != "data" and then.get(k) != now[k]]
    keys = [k for k in apart if k not in ROUNDING]
    if keys:
        changes = ", ".join(f"{k} was {then.get(k)} and is {now[k]}" for k in keys)
        raise Refused(
            f"The checkpoint {path} is of another run: {changes}.",
            "Use the same settings, or start anew with --resume never --overwrite.",
        )
    for key in apart:
        reporter.warn(
            f"The checkpoint was written with {ROUNDING[key]} {then.get(key)}, this is {now[key]}: "
            "the result will be equal in kind, but not bit for bit."
        )
