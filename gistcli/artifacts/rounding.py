"""What the last cast of a merge loses: of the update, not of the weight.

An update of 1 % of W survives a cast to bfloat16 with an error of 17 %, one of 0.1 % with 79 %,
whatever the arithmetic before the cast; so the loss is measured for each tensor and reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gistcli.artifacts.tensors import dtype_name

CANDIDATES = (torch.float32, torch.float16, torch.bfloat16)
WORTH_SAYING = 0.02


@dataclass(frozen=True)
class Rounding:
    """How much of one tensor's update survives.

    With base W, tuned W' (float32) and the written c = cast(W'):

    Attributes:
        relative_change: ||W' - W|| / ||W||.
        relative_rounding: ||c - W'|| / ||W' - W||; 0 where nothing changed.
        cosine: of c - W with W' - W; 1 where nothing changed.
        unchanged_fraction: share of the updated elements whose c equals cast(W).
        by_dtype: relative_rounding, had it been written in another dtype; inf where it overflows.
    """

    key: str
    relative_change: float
    relative_rounding: float
    cosine: float
    unchanged_fraction: float
    by_dtype: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; an overflow is null."""
        found = asdict(self)
        found["by_dtype"] = {k: v if math.isfinite(v) else None for k, v in self.by_dtype.items()}
        return found


def measure(key: str, base: Tensor, tuned: Tensor, dtype: torch.dtype) -> Rounding:
    """The rounding of one tensor; `base` and `tuned` are float32 of one shape.

    Where the shapes differ (rows were added) the update is the whole tensor.
    """
    base = base if base.shape == tuned.shape else torch.zeros_like(tuned)
    update = tuned - base
    size = _norm(update)
    written = tuned.to(dtype)
    stays = written == base.to(dtype)
    losses = {dtype_name(d): _lost(tuned, tuned.to(d), size) for d in CANDIDATES}
    return _compare(key, base, update, written.float() - base, stays, losses)


def measure_update(key: str, base: Tensor, update: Tensor, kept: Tensor) -> Rounding:
    """The rounding of an update that is written apart from the base (a LoRA folder)."""
    return _compare(key, base, update, kept, kept == 0, {})


def _compare(
    key: str,
    base: Tensor,
    update: Tensor,
    kept: Tensor,
    stays: Tensor,
    by_dtype: dict[str, float],
) -> Rounding:
    size = _norm(update)
    product = size * _norm(kept)
    asked = update != 0
    return Rounding(
        key=key,
        relative_change=size / max(_norm(base), torch.finfo(torch.float32).tiny),
        relative_rounding=_norm(kept - update) / size if size else 0.0,
        cosine=min(1.0, float(torch.sum(update * kept)) / product) if product else 1.0,
        unchanged_fraction=float((stays & asked).sum()) / max(int(asked.sum()), 1),
        by_dtype=by_dtype,
    )


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _lost(tuned: Tensor, written: Tensor, size: float) -> float:
    if not torch.isfinite(written).all():
        return math.inf
    return _norm(written.float() - tuned) / size if size else 0.0


def worst(found: Sequence[Rounding]) -> float:
    """The largest relative rounding; 0 where no tensor was patched."""
    return max((r.relative_rounding for r in found), default=0.0)


def advice(found: Iterable[Rounding], dtype: str) -> str:
    """One or two sentences on the choice of the dtype; empty where little is lost."""
    found = list(found)
    if worst(found) < WORTH_SAYING:
        return ""
    most = max(found, key=lambda r: r.relative_rounding)
    text = (
        f"Rounding to {dtype} costs {most.relative_rounding:.1%} of the update of {most.key}"
        f" ({most.unchanged_fraction:.0%} of its updated elements do not move)."
    )
    others = {d: max(r.by_dtype[d] for r in found) for d in found[0].by_dtype}
    better = [
        f"{d} would lose {f'{v:.1%}' if v else 'nothing'}"
        for d, v in others.items()
        if v < worst(found) / 2
    ]
    return f"{text} {', '.join(better)}: use --dtype." if better else text
