"""One optimiser step: micro-batches, backward, guards, clipping, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from gistcli.objectives.base import Batch, Losses, Objective
from gistcli.train.guards import Movement, require_fired, require_gradients
from gistcli.train.optim import build_optimiser, set_rates
from gistcli.train.plan import Plan
from gistcli.train.seeds import seed_all, step_seed
from gistcli.train.source import micro_batches


@dataclass(frozen=True)
class Outcome:
    """One window of micro-batches, as plain numbers.

    Attributes:
        loss: mean over the window's units.
        grad_norm: of all gradients together, before clipping.
        figures: `train/…` means, the parts of the loss among them where it has several.
        rates: `lr`, and `head_lr` where it differs in kind.
        examples: in the window, over all processes.
    """

    loss: float
    grad_norm: float
    figures: Mapping[str, float]
    rates: Mapping[str, float]
    examples: int

    @property
    def finite(self) -> bool:
        """Whether the update was made: loss and gradients are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Stepper:
    """Owns the optimiser. Build it when the parameters are loaded and on their device.

    Args:
        objective: what is minimised.
        plan: rates, micro-batch size, seed.
        accelerator: autocast, backward, clipping, and the other processes if there are any.
        total: steps of the whole run, for the schedule.
    """

    def __init__(
        self, objective: Objective, plan: Plan, accelerator: Accelerator, total: int
    ) -> None:
        self.objective, self.plan = objective, plan
        self.accelerator, self.total = accelerator, total
        self.trainable = objective.tuner.trainable()
        self.parameters = [t.parameter for t in self.trainable.values()]
        self.optimiser = build_optimiser(self.trainable, plan.optim)
        distributed = accelerator.num_processes > 1
        self.wrapped = accelerator.prepare_model(objective) if distributed else objective
        self.movement: Movement | None = None

    def take(self, batch: Batch, step: int) -> Outcome:
        """Optimiser step `step` (from 0); no update is made where loss or gradient is not finite.

        Raises:
            NotSupported: in the first two steps, see `guards`.
        """
        seed_all(step_seed(self.plan.seed, step, self.accelerator.process_index))
        rates = set_rates(self.optimiser, self.plan.optim, step, self.total)
        self.optimiser.zero_grad(set_to_none=True)
        pieces = micro_batches(batch, self.plan.micro_batch_size)
        counts = [self.objective.count(piece) for piece in pieces]
        denominator = self._over_processes(sum(counts))
        with self.objective.tuner.step():
            losses = [
                self._backward(piece, denominator, last=piece is pieces[-1]) for piece in pieces
            ]
        if step == 0:
            tuner = self.objective.tuner
            require_fired(tuner)
            require_gradients(self.trainable, tuner.idle())
            self.movement = Movement(self.trainable, tuner.idle())
        outcome = self._outcome(losses, self._clip(), rates, len(next(iter(batch.values()))))
        if outcome.finite:
            self.optimiser.step()
            if self.movement is not None:
                self.movement.check(self.optimiser)
                self.movement = None if self.movement.done else self.movement
        else:
            self.optimiser.zero_grad(set_to_none=True)
        return outcome

    def _backward(self, piece: Batch, denominator: float, *, last: bool) -> Losses:
        sync = contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)
        with sync:
            with self.accelerator.autocast():
                losses: Losses = self.wrapped(piece, denominator)
            # DDP averages over processes what the denominator has divided over all of them
            self.accelerator.backward(losses.total * self.accelerator.num_processes)
        return losses

    def _clip(self) -> Tensor:
        """The norm of all gradients, which are scaled down to `clip_norm` where that is set."""
        limit = self.plan.optim.clip_norm
        if limit is not None:
            return self.accelerator.clip_grad_norm_(self.parameters, limit)
        return torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )

    def _outcome(
        self, losses: list[Losses], norm: Tensor, rates: Mapping[str, float], examples: int
    ) -> Outcome:
        """Adds the micro-batches up and fetches all figures from the device at once."""
        names = ["loss"]
        if len(losses[0].parts) > 1:
            names += [f"loss/{name}" for name in losses[0].parts]
        names += list(losses[0].figures)
        rows = []
        for each in losses:
            parts = list(each.parts.values()) if len(each.parts) > 1 else []
            row = [each.total.detach(), *parts, *each.figures.values()]
            rows.append(torch.stack([v.float() for v in row]))
        sums = torch.stack(rows).sum(0)
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums)
        fetched: list[float] = torch.cat([sums, norm.detach().float().reshape(1)]).tolist()
        *values, grad_norm = fetched
        figures = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        whole = int(self._over_processes(examples))
        return Outcome(values[0], grad_norm, figures, rates, whole)

    def _over_processes(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return float(value)
        there = torch.tensor(float(value), device=self.accelerator.device)
        return float(self.accelerator.reduce(there))
