"""What the last cast of a merge loses: of the update, not of the weight.

An update of 1 % of W survives a cast to bfloat16 with an error of 17 %, one of 0.1 % with 79 %,
whatever the arithmetic before the cast; so the loss is measured for each tensor and reported.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
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
        updated: number of updated elements.
        quantisation: ||W - stored|| / ||W' - W|| where the base is a quantised one; else 0.
    """

    key: str
    relative_change: float
    relative_rounding: float
    cosine: float
    unchanged_fraction: float
    by_dtype: dict[str, float]
    updated: int = 0
    quantisation: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; an overflow is null."""
        found = asdict(self)
        found["by_dtype"] = {k: v if math.isfinite(v) else None for k, v in self.by_dtype.items()}
        return found


def measure(
    key: str, base: Tensor, tuned: Tensor, dtype: torch.dtype, lost: float = 0.0
) -> Rounding:
    """The rounding of one tensor; `base` and `tuned` are float32 of one shape.

    `lost` is the norm of what quantising the base had changed.

    Where the shapes differ (rows were added) the update is the whole tensor.
    """
    base = base if base.shape == tuned.shape else torch.zeros_like(tuned)
    sums = _Sums()
    others = [c for c in CANDIDATES if c not in (dtype, tuned.dtype)]
    for w, new in zip(_chunks(base), _chunks(tuned), strict=True):
        written = new.to(dtype)
        sums.add(w, new - w, written.float() - w, written == w.to(dtype))
        for candidate in others:
            sums.lost[dtype_name(candidate)] += _square(new.to(candidate).float() - new)
    sums.lost[dtype_name(dtype)] = sums.error
    sums.lost[dtype_name(tuned.dtype)] = 0.0
    return sums.result(key, lost)


def measure_update(
    key: str, base: Tensor, update: Tensor, kept: Tensor, lost: float = 0.0
) -> Rounding:
    """The rounding of an update that is written apart from the base (a LoRA folder)."""
    sums = _Sums()
    sums.add(base, update, kept, kept == 0)
    return sums.result(key, lost)


class _Sums:
    """What `Rounding` is made of, summed over pieces: large tensors are not copied whole."""

    def __init__(self) -> None:
        self.base = self.update = self.kept = self.product = self.error = 0.0
        self.asked = self.stayed = 0
        self.lost: defaultdict[str, float] = defaultdict(float)  # squared error by dtype

    def add(self, base: Tensor, update: Tensor, kept: Tensor, stays: Tensor) -> None:
        """One piece: W, W' - W, c - W, and where c is the cast of W."""
        asked = update != 0
        self.base += _square(base)
        self.update += _square(update)
        self.kept += _square(kept)
        self.error += _square(kept - update)
        self.product += float(torch.sum(update * kept))
        self.asked += int(torch.count_nonzero(asked))
        self.stayed += int(torch.count_nonzero(stays & asked))

    def result(self, key: str, lost: float) -> Rounding:
        """The figures of the whole tensor."""
        size = math.sqrt(self.update)
        norms = size * math.sqrt(self.kept)
        return Rounding(
            key=key,
            relative_change=size / max(math.sqrt(self.base), torch.finfo(torch.float32).tiny),
            relative_rounding=_ratio(self.error, size),
            cosine=min(1.0, self.product / norms) if norms else 1.0,
            unchanged_fraction=self.stayed / max(self.asked, 1),
            by_dtype={name: _ratio(square, size) for name, square in self.lost.items()},
            updated=self.asked,
            quantisation=lost / size if size else 0.0,
        )


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    return x.reshape(-1).split(1 << 18)  # what a core keeps at hand


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) ** 2


def _ratio(squared_error: float, size: float) -> float:
    if not math.isfinite(squared_error):
        return math.inf
    return math.sqrt(squared_error) / size if size else 0.0


def worst(found: Sequence[Rounding]) -> float:
    """The largest relative rounding; 0 where no tensor was patched."""
    return max((r.relative_rounding for r in found), default=0.0)


def quantised_note(found: Sequence[Rounding], *, apart: bool) -> str:
    """What quantising the base means for a merge; empty where it was not quantised.

    Args:
        found: of every patched tensor.
        apart: the update is written without the base.
    """
    most = max((r.quantisation for r in found), default=0.0)
    if not most:
        return ""
    text = f"Quantising moved the base by up to {most:.3g} times the update"
    if apart:
        return f"{text}: put this on the base quantised in the same way."
    return f"{text}; what is written is the dequantised base with the update, as it was trained."


def lost_share(found: Sequence[Rounding]) -> float:
    """The share of all updated elements that the cast puts back where they were."""
    updated = sum(r.updated for r in found)
    return sum(r.unchanged_fraction * r.updated for r in found) / max(updated, 1)


def advice(found: Sequence[Rounding], dtype: str, *, low_rank: bool = False) -> str:
    """Some sentences on the choice of the dtype; empty where little is lost.

    Args:
        found: of every patched tensor.
        dtype: that was written.
        low_rank: the update can be written apart from the base.
    """
    if worst(found) < WORTH_SAYING:
        return ""
    most = max(found, key=lambda r: r.relative_rounding)
    text = (
        f"Rounding to {dtype} costs {most.relative_rounding:.1%} of the update of {most.key}; "
        f"{lost_share(found):.0%} of all updated weights do not move."
    )
    others = {d: max(r.by_dtype[d] for r in found) for d in found[0].by_dtype}
    better = [
        f"--dtype {d} would lose {f'{v:.1%}' if v else 'nothing'}"
        for d, v in others.items()
        if v < worst(found) / 2
    ]
    if low_rank:
        better.append("--format peft keeps the update in tensors of its own")
    return f"{text} {'; '.join(better)}." if better else text
