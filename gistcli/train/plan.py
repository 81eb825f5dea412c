"""What a training run is told: plain numbers, every default already filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gistcli.errors import Refused
from gistcli.figures import lower_is_better


@dataclass(frozen=True)
class OptimPlan:
    """The optimiser and its rates.

    Attributes:
        name: adamw or sgd.
        lr: peak rate of the method's parameters.
        head_lr: peak rate of the head's parameters.
        weight_decay: of the parameters that the tuner marks for decay.
        momentum: of sgd.
        beta2: of adamw.
        schedule: cosine, linear or constant.
        warmup_ratio: share of all steps.
        clip_norm: largest norm of all gradients together; None leaves them alone.
    """

    name: str = "adamw"
    lr: float = 3e-3
    head_lr: float = 3e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    beta2: float = 0.999
    schedule: str = "cosine"
    warmup_ratio: float = 0.1
    clip_norm: float | None = None


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        seed: of data order, augmentation and every random draw inside a step.
        epochs: passes over the training split, unless `max_steps` is given.
        max_steps: optimiser steps in all; wins over `epochs`.
        batch_size: examples an optimiser step sees, over all processes.
        micro_batch_size: examples a forward pass of one process sees; None is all of them.
        eval_every: "epoch", a number of steps, or "none"; the last step is always evaluated.
        select: keep the weights of the last step or of the best evaluation.
        metric: what decides the best evaluation and early stopping.
        patience: evaluations without a new best before training stops; None never stops.
        save_steps: steps between checkpoints; None is once an epoch.
        keep: how many checkpoints stay.
        max_time: seconds after which the state is saved and training stops.
        deterministic: refuse operations without a deterministic form.
    """

    seed: int = 0
    epochs: int = 20
    max_steps: int | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    eval_every: int | Literal["epoch", "none"] = "epoch"
    select: Literal["last", "best"] = "last"
    metric: str = "accuracy"
    patience: int | None = None
    save_steps: int | None = None
    keep: int = 1
    max_time: float | None = None
    deterministic: bool = False
    optim: OptimPlan = field(default_factory=OptimPlan)

    def total_steps(self, per_epoch: int) -> int:
        """Optimiser steps in all, for so many steps an epoch."""
        return self.max_steps if self.max_steps is not None else self.epochs * per_epoch

    def evaluates_at(self, step: int, per_epoch: int) -> bool:
        """Whether an evaluation follows after `step` steps have been taken."""
        if self.eval_every == "none" or step == 0:
            return False
        every = per_epoch if self.eval_every == "epoch" else self.eval_every
        return step % every == 0 or step == self.total_steps(per_epoch)

    def saves_at(self, step: int, per_epoch: int) -> bool:
        """Whether a checkpoint follows after `step` steps have been taken."""
        every = self.save_steps or per_epoch
        return step > 0 and (step % every == 0 or step == self.total_steps(per_epoch))

    def better(self, value: float, than: float) -> bool:
        """Whether a value of the metric beats another; equal values do not."""
        return value < than if lower_is_better(self.metric) else value > than

    def require_evaluation(self, available: bool) -> None:
        """Refuse a plan that selects or stops by an evaluation that never happens.

        Raises:
            Refused: no validation data, or `eval.every: none`.
        """
        wants = {"eval.select: best": self.select == "best", "train.patience": bool(self.patience)}
        asked = [name for name, wanted in wants.items() if wanted]
        if asked and (not available or self.eval_every == "none"):
            why = "eval.every is none" if available else "there is no validation data"
            raise Refused(
                f"{' and '.join(asked)} cannot work: {why}.",
                "Set data.val_fraction and eval.every, or leave them out.",
            )
