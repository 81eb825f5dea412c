"""Outputs of a tuned network on a split, and all figures that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.layout import Features
from gistcli.evaluate.metrics import score_labels, top_k_accuracy
from gistcli.methods.base import Tuner
from gistcli.reporting import SILENT, Reporter

T = TypeVar("T")


class EvaluationSplit(Protocol):
    """What evaluation needs of a split: its batches in order, without augmentation."""

    @property
    def names(self) -> Sequence[str]:
        """Unique name of each example, in order."""

    def __len__(self) -> int:
        """Number of examples."""

    def batches(self, batch_size: int, *, seed: int | None) -> Iterator[Mapping[str, Tensor]]:
        """The batches; `seed=None` is the order of the split."""


@dataclass(frozen=True)
class Predictions:
    """Per-example outputs, in the order of the split.

    Attributes:
        index: (N,) int64 place in the split.
        labels: (N,) int64 true class numbers, or float32 true values.
        logits: (N, K) float32, on the CPU; K is 1 where values are predicted.
        names: of the examples.
    """

    index: Tensor
    labels: Tensor
    logits: Tensor
    names: list[str]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def predicted(self) -> Tensor:
        """(N,) int64 class numbers with the largest logit."""
        return self.logits.argmax(dim=1)

    @property
    def probabilities(self) -> Tensor:
        """(N, K) softmax of the logits."""
        return self.logits.softmax(dim=1)

    @property
    def values(self) -> Tensor:
        """(N,) float32: the only output of each example."""
        return self.logits[:, 0]

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the true classes, in nats."""
        return float(F.cross_entropy(self.logits, self.labels)) if len(self) else 0.0


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode; behind it each is as it was."""
    before = {m: m.training for module in modules for m in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The autocast that training uses for a precision: nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def run_over(
    tuner: Tuner,
    split: EvaluationSplit,
    batch_size: int,
    take: Callable[[Mapping[str, Tensor], Features], T],
    *,
    forward: Callable[[Mapping[str, Tensor]], Features] | None = None,
    precision: str = "fp32",
    reporter: Reporter = SILENT,
    phase: str = "evaluate",
) -> list[T]:
    """What `take(batch, features)` makes of every batch, in evaluation mode, without gradients.

    Args:
        tuner: attached; network and tuner are left in the mode they were in.
        split: the examples; its batches come on the device of the network.
        batch_size: examples at a time; changes speed and memory only.
        take: what is kept of a batch.
        forward: a batch through the network; None for the tuner's own pass.
        precision: fp32 or bf16 autocast, as in training.
        reporter: gets a phase of that name, in examples.
        phase: its name.
    """
    taken: list[T] = []
    reporter.start(phase, len(split), "examples")
    try:
        with evaluation_mode(tuner, tuner.backbone), torch.no_grad(), tuner.step():
            for batch in split.batches(batch_size, seed=None):
                with autocast(batch["labels"].device, precision):
                    features: Features = (forward or tuner)(batch)
                taken.append(take(batch, features))
                reporter.advance(phase, len(batch["labels"]))
    finally:
        reporter.finish(phase)
    return taken


def predict(
    tuner: Tuner,
    split: EvaluationSplit,
    batch_size: int,
    *,
    precision: str = "fp32",
    reporter: Reporter = SILENT,
    phase: str = "evaluate",
) -> Predictions:
    """Runs the tuned network over a split; arguments as in `run_over`."""
    rows = run_over(
        tuner,
        split,
        batch_size,
        lambda batch, features: (batch["index"], batch["labels"], features.logits.float()),
        precision=precision,
        reporter=reporter,
        phase=phase,
    )
    index, labels, logits = (torch.cat(c).cpu() for c in zip(*rows, strict=True))
    return Predictions(index, labels, logits, list(split.names))


def score(
    predictions: Predictions, classes: Sequence[str], positive: str | None = None
) -> dict[str, Any]:
    """All figures of a classifier, as JSON values.

    Args:
        predictions: of a split.
        classes: names in order.
        positive: of two classes the one that `f1` is of; None for `metrics.positive_class`.

    Returns:
        What `metrics.score_labels` gives, plus `loss` (mean negative log-likelihood) and, with
        more than five classes, `top5_accuracy`.
    """
    labels = predictions.labels.numpy()
    figures = score_labels(labels, predictions.predicted.numpy(), classes, positive)
    figures["loss"] = predictions.loss
    if len(classes) > 5:
        figures["top5_accuracy"] = top_k_accuracy(predictions.logits.numpy(), labels, 5)
    return figures


def scalars(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures that are one number each, without `n`: what a log line and a tracker take."""
    return {k: float(v) for k, v in figures.items() if isinstance(v, float)}
