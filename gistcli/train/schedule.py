"""Learning-rate schedules as pure functions of the step, so that nothing is there to be saved."""

from __future__ import annotations

import math

from gistcli.errors import UnknownName, did_you_mean

SCHEDULES = ("cosine", "linear", "constant")


def warmup_steps(total: int, ratio: float) -> int:
    """Steps of warm-up: `ratio` of all, rounded, and never all of them."""
    return min(round(ratio * total), max(total - 1, 0))


def factor(name: str, step: int, total: int, warmup: int) -> float:
    """What the learning rate is multiplied by in optimiser step `step` (from 0).

    With W warm-up steps of T and t = (step - W) / (T - W):
    warm-up (step < W) rises as (step + 1) / (W + 1), so that the first step already moves and
    step W is the first at the full rate; then cosine (1 + cos(pi t)) / 2, linear 1 - t, or
    constant 1. Cosine and linear would reach 0 at step T, which is never taken.

    Raises:
        UnknownName: no such schedule.
    """
    if name not in SCHEDULES:
        raise UnknownName(f"{name!r} is no schedule.", did_you_mean(name, SCHEDULES))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    t = min((step - warmup) / max(total - warmup, 1), 1.0)
    if name == "cosine":
        return (1 + math.cos(math.pi * t)) / 2
    return 1 - t if name == "linear" else 1.0
