"""What to change where the memory did not suffice, with what each change would come to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gistcli.backbones import Backbone
from gistcli.data.episodes import Rows
from gistcli.data.text import TextSplit
from gistcli.errors import OutOfMemory
from gistcli.run.memory import Estimator, largest_that_fits, size_of
from gistcli.run.workload import Workload
from gistcli.train.memory import is_out_of_memory


@contextmanager
def explained(estimator: Estimator) -> Iterator[None]:
    """Inside, running out of memory is one error that says what to change.

    Raises:
        OutOfMemory: with what the run needs under each of the other settings.
    """
    try:
        yield
    except OutOfMemory as error:
        raise OutOfMemory(error.message, advice(estimator)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        device = estimator.setting.device
        raise OutOfMemory(
            f"The memory of {device} did not suffice, outside the steps of training.",
            f"Try a smaller eval.batch_size. {advice(estimator)}",
        ) from error


def advice(estimator: Estimator) -> str:
    """What to change where the memory did not suffice, what costs least first.

    Each with what the run would then need, as far as that can be told.
    """
    model = estimator.recipe.model
    now = estimator.estimate()
    ways: list[tuple[str, str, dict[str, Any]]] = []
    if now.rows > 1:
        size = min(largest_that_fits(estimator), -(-now.rows // 2))
        ways.append((f"train.micro_batch_size={size}", "the result stays the same", {"rows": size}))
    if now.length is not None and now.length > 64 and not _of_rows(estimator.workload):
        length = now.length // 2
        longer = share_longer(estimator.workload, length)
        ways.append((f"data.max_length={length}", f"{longer:.0%} of the examples are longer",
                     {"length": length}))  # fmt: skip
    if not model.grad_checkpointing:
        ways.append(("model.grad_checkpointing=true", "a step takes about a third longer",
                     {"grad_checkpointing": True}))  # fmt: skip
    if model.dtype != "bfloat16" and _mostly_float32(estimator.planned.backbone):
        ways.append(("model.dtype=bfloat16", "of the frozen weights", {"dtype": "bfloat16"}))
    if model.quantize is None and now.length is not None:
        ways.append(("model.quantize=nf4", "frozen weights in 4 bits", {"quantize": "nf4"}))
    lines = [f"{key} ({what}; {_needs(estimator, asked)})" for key, what, asked in ways]
    free = f"{size_of(estimator.free)} were free at the start"
    return f"{free}. What helps, what costs least first: {'; '.join(lines)}."


def _mostly_float32(backbone: Backbone) -> bool:
    return next(backbone.model.parameters()).dtype == torch.float32


def _needs(estimator: Estimator, asked: dict[str, Any]) -> str:
    found = estimator.estimate(**asked)
    return f"about {size_of(found.footprint.total)}"


def _of_rows(workload: Workload | None) -> bool:
    """Whether lengths are those that the section `hyper` says."""
    return workload is not None and isinstance(workload.splits.get("train"), Rows)


def share_longer(workload: Workload | None, length: int) -> float:
    """Share of the training sequences that have more tokens."""
    split = None if workload is None else workload.splits.get("train")
    return float((split.lengths > length).mean()) if isinstance(split, TextSplit) else 0.0
