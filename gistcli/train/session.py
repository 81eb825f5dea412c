"""One call of `fit`: steps, and what happens between them."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from gistcli.errors import Diverged, Interrupted, OutOfMemory, UnknownName, did_you_mean
from gistcli.objectives.base import Batch, Objective
from gistcli.reporting import Reporter
from gistcli.train.checkpoint import (
    Checkpoint,
    Progress,
    newest_checkpoint,
    read_checkpoint,
    step_folder,
    write_checkpoint,
)
from gistcli.train.identity import identify, require_same
from gistcli.train.interrupt import Halt, Stopper
from gistcli.train.memory import is_out_of_memory
from gistcli.train.optim import load_optimiser_state, optimiser_state
from gistcli.train.plan import Plan
from gistcli.train.recorder import Recorder
from gistcli.train.source import Source
from gistcli.train.stepping import Outcome, Stepper

Evaluate = Callable[[], Mapping[str, float]]


@dataclass
class Session:
    """The state of a training run between two steps; see `loop.fit` for the arguments."""

    objective: Objective
    split: Source
    plan: Plan
    accelerator: Accelerator
    stopper: Stopper
    evaluate: Evaluate | None
    checkpoints: Path | None
    recorder: Recorder
    reporter: Reporter
    progress: Progress = field(default_factory=Progress)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        self.per_epoch = self.split.batches_per_epoch(self.plan.batch_size)
        self.total = self.plan.total_steps(self.per_epoch)
        self.identity = identify(self.plan, self.split, self.total)
        self._recent: deque[tuple[int, float]] = deque(maxlen=20)
        checkpoint = self._find_checkpoint()
        if checkpoint is not None:
            self.objective.tuner.load_state(checkpoint.tuner)
        self.stepper = Stepper(self.objective, self.plan, self.accelerator, self.total)
        if checkpoint is not None:
            idle = self.objective.tuner.idle()
            load_optimiser_state(self.stepper.optimiser, checkpoint.optimiser, idle=idle)
            self.progress, self.history = checkpoint.progress, checkpoint.history
            self.best = dict(checkpoint.best) if checkpoint.best is not None else None
            self.reporter.say(f"Going on from step {self.progress.step} of {self.total}.")
        self._saved = self._stage if checkpoint is not None else None
        self._resumed_seconds, self._resumed_step = self.progress.seconds, self.progress.step
        self._began = time.perf_counter()
        self.recorder.rewind(self.progress.step)

    def _find_checkpoint(self) -> Checkpoint | None:
        if self.checkpoints is None:
            return None
        path = newest_checkpoint(self.checkpoints, self.reporter.warn)
        if path is None:
            return None
        checkpoint = read_checkpoint(path)
        require_same(checkpoint.identity, self.identity, path, self.reporter)
        return checkpoint

    # --- the run ----------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to the last step, or until patience is out; then puts the chosen weights in."""
        self.objective.train()
        self.reporter.start("train", self.total)
        self.reporter.advance("train", self.progress.step)
        try:
            self._after_step()  # what an interruption has left undone
            while not self._finished:
                self._epoch()
        finally:
            self.reporter.finish("train")
            self._clock()
        if self.plan.select == "best" and self.best is not None:
            self.objective.tuner.load_state(self.best)

    def require_unstopped(self) -> None:
        """Raise for a signal of the last step or later: whoever called has more to stop.

        Raises:
            Interrupted: one came, and training was through.
        """
        if self.stopper.signal:
            raise self._interrupted(self.stopper.signal)

    @property
    def _finished(self) -> bool:
        return self.progress.stopped is not None or self.progress.step >= self.total

    @property
    def _stage(self) -> tuple[int, int]:
        """What tells two checkpoints apart: an interrupted evaluation leaves one without it."""
        return self.progress.step, self.progress.evaluated

    def _epoch(self) -> None:
        """The rest of the current epoch."""
        epoch, start = divmod(self.progress.step, self.per_epoch)
        before = self.progress.step
        for batch in self.split.batches(
            self.plan.batch_size,
            seed=self.plan.seed,
            epoch=epoch,
            start_batch=start,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        ):
            self._step(batch)
            self._after_step()
            if self._finished:
                return
        taken, promised = self.progress.step - before, self.per_epoch - start
        assert taken == promised, f"{taken} batches came instead of {promised}"

    def _step(self, batch: Batch) -> None:
        begin = time.perf_counter()
        try:
            outcome = self.stepper.take(batch, self.progress.step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory(f"in step {self.progress.step + 1}") from error
        if not outcome.finite:
            raise self._diverged(outcome)
        spent = time.perf_counter() - begin
        self._recent.append((outcome.examples, spent))
        self.progress.step += 1
        self.progress.examples += outcome.examples
        self.progress.train_seconds += spent
        rate = sum(n for n, _ in self._recent) / max(sum(s for _, s in self._recent), 1e-9)
        self._record("train", {**outcome.figures, **outcome.rates, "grad_norm": outcome.grad_norm,
                               "samples_per_second": round(rate, 2)})  # fmt: skip
        shown = {k.removeprefix("train/"): v for k, v in outcome.figures.items()}
        self.reporter.advance("train", 1, **shown, lr=outcome.rates["lr"], samples_per_s=rate)

    def _record(self, kind: str, figures: Mapping[str, float]) -> None:
        step = self.progress.step
        record = {"kind": kind, "step": step, "epoch": round(step / self.per_epoch, 4), **figures}
        self.history.append(record)
        self.recorder.record(record)

    def _after_step(self) -> None:
        """Evaluation, early stopping, checkpoint, interruption, in this order."""
        progress, plan = self.progress, self.plan
        due = self.evaluate is not None and plan.evaluates_at(progress.step, self.per_epoch)
        if due and progress.evaluated < progress.step:
            self._evaluate()
        reason = self.stopper.reason(advanced=progress.step > self._resumed_step)
        if reason or self._finished or plan.saves_at(progress.step, self.per_epoch):
            self._save()
        if reason and not self._finished:
            raise self._interrupted(reason)

    # --- between two steps ------------------------------------------------------------------

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        try:
            with self.stopper.at_once():
                figures = {k: float(v) for k, v in self.evaluate().items()}
        except Halt:
            return  # the step stays unevaluated: a resumed run begins with it
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory(
                f"in the evaluation after step {self.progress.step}"
            ) from error
        progress, metric = self.progress, self.plan.metric
        # `test/accuracy` of `eval.best_test`: recorded, never looked at
        others = {name: figures.pop(name) for name in list(figures) if "/" in name}
        if not figures:
            progress.evaluated = progress.step
            self._record("eval", others)
            return
        if metric not in figures:
            raise UnknownName(
                f"eval.metric: {metric!r} is not measured.", did_you_mean(metric, figures)
            )
        value = figures[metric]
        progress.evaluated = progress.step
        better = progress.best_value is None or self.plan.better(value, progress.best_value)
        if better:
            progress.best_step, progress.best_value = progress.step, value
            progress.best_metrics, progress.stale = figures, 0
            if self.plan.select == "best":
                self.best = _copy(self.objective.tuner.state())
        else:
            progress.stale += 1
            if self.plan.patience is not None and progress.stale >= self.plan.patience:
                progress.stopped = "patience"
        self._record("eval", {**{f"val/{name}": x for name, x in figures.items()}, **others})
        self._say_evaluation(figures, better)

    def _say_evaluation(self, figures: Mapping[str, float], better: bool) -> None:
        names = dict.fromkeys([self.plan.metric, "loss"])
        shown = ", ".join(f"{n} {figures[n]:.4g}" for n in names if n in figures)
        epoch = self.progress.step / self.per_epoch
        end = " (best so far)" if better else ""
        if self.progress.stopped:
            end = f"; no better for {self.progress.stale} evaluations, so training stops"
        self.reporter.say(
            f"epoch {epoch:g}, step {self.progress.step}/{self.total}: validation {shown}{end}"
        )

    def _clock(self) -> None:
        self.progress.seconds = self._resumed_seconds + time.perf_counter() - self._began

    def _save(self) -> None:
        if self.checkpoints is None or self._saved == self._stage:
            return
        self._saved = self._stage
        self._clock()
        checkpoint = Checkpoint(
            progress=self.progress,
            identity=self.identity,
            tuner=self.objective.tuner.state(),
            optimiser=optimiser_state(self.stepper.optimiser),
            best=self.best,
            history=self.history,
        )
        if self.accelerator.is_main_process:
            write_checkpoint(self.checkpoints, checkpoint, self.plan.keep)
        self.accelerator.wait_for_everyone()

    def _saved_where(self) -> str:
        if self.checkpoints is None or self._saved is None:
            return "no state was saved (no folder for checkpoints)"
        return f"the state is saved in {step_folder(self.checkpoints, self._saved[0])}"

    def _interrupted(self, reason: str) -> Interrupted:
        return Interrupted(
            f"Stopped by {reason} after step {self.progress.step} of {self.total}; "
            f"{self._saved_where()}.",
            "Run the same command again to go on from there." if self._saved is not None else "",
        )

    def _out_of_memory(self, where: str) -> OutOfMemory:
        """No update was made, so that the state can be gone on from with smaller micro-batches."""
        self.stepper.optimiser.zero_grad(set_to_none=True)
        with contextlib.suppress(MemoryError, RuntimeError):  # there may be none for this, either
            if self.progress.step > 0:
                self._save()
        size = self.plan.micro_batch_size or self.plan.batch_size
        return OutOfMemory(
            f"The memory of {self.accelerator.device} did not suffice {where} of {self.total}, "
            f"with {size} examples at a time; {self._saved_where()}.",
            f"Set train.micro_batch_size to {max(size // 2, 1)}: the result stays the same.",
        )

    def _diverged(self, outcome: Outcome) -> Diverged:
        """Keeps the state before the step, unless that is already beyond repair."""
        state = self.objective.tuner.state()
        if all(bool(torch.isfinite(t).all()) for t in state.values()):
            self._save()
        what, value = "loss", outcome.loss
        if math.isfinite(value):
            what, value = "gradient norm", outcome.grad_norm
        optim = self.plan.optim
        hints = [f"lower optim.lr (now {optim.lr:g}) and optim.head_lr (now {optim.head_lr:g})"]
        if optim.clip_norm is None:
            hints.append("set optim.clip_norm to 1")
        if self.accelerator.mixed_precision != "no":
            hints.append("set train.precision to fp32")
        return Diverged(
            f"The {what} is {value} in step {self.progress.step + 1} of {self.total} "
            f"(lr {outcome.rates['lr']:.3g}); no update was made on it, and {self._saved_where()}.",
            f"Try to {', or '.join(hints)}.",
        )


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state that later steps do not change, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
