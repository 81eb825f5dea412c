"""The largest micro-batch that a device holds, by trial."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from gistcli.objectives.base import Batch, Objective
from gistcli.train.memory import is_out_of_memory
from gistcli.train.seeds import preserved_generators


def largest_by_trial(
    objective: Objective,
    longest: Callable[[int], Batch],
    sizes: Sequence[int],
    *,
    precision: str,
    spare: int = 0,
) -> int:
    """The first size whose step does not run out of memory; the last where all do.

    Two backward passes are made, so that the gradients of the first are there in the second; no
    update is. Random numbers, gradients and modes are afterwards as before.

    Args:
        objective: on its device.
        longest: the batch of so many examples that takes the most memory, on the device.
        sizes: falling.
        precision: fp32 or bf16 autocast.
        spare: bytes that have to be left: the moments of the optimiser.
    """
    training = objective.training
    objective.train()
    try:
        for size in sizes:
            with preserved_generators():
                fits = _fits(objective, longest, size, precision, spare)
            if fits:
                return size
        return sizes[-1]
    finally:
        objective.train(training)


def _fits(
    objective: Objective,
    longest: Callable[[int], Batch],
    size: int,
    precision: str,
    spare: int,
) -> bool:
    trained = [t.parameter for t in objective.tuner.trainable().values()]
    device = trained[0].device
    try:
        held = torch.empty(spare, dtype=torch.uint8, device=device)
        for _ in range(2):
            _backward(objective, longest(size), precision, device)
        del held
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        for parameter in trained:
            parameter.grad = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _backward(objective: Objective, batch: Batch, precision: str, device: torch.device) -> None:
    count = objective.count(batch)
    with objective.tuner.step():
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            total = objective(batch, max(count, 1.0)).total
        total.backward()
