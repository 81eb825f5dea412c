"""What the head reads, computed once: a split whose batches hold features instead of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gistcli.backbones.layout import Features
from gistcli.data.augment import batch_indices
from gistcli.evaluate.classify import EvaluationSplit, run_over
from gistcli.methods.base import Tuner
from gistcli.reporting import SILENT, Reporter


class LabelledSplit(EvaluationSplit, Protocol):
    """A split that also knows its labels before any batch is asked for."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64 label of each example."""


class FeatureSplit:
    """A split whose batches hold `pooled` (B, D) float32 instead of `pixels`.

    The network runs over it once, in evaluation mode, when the first batch is asked for; the
    features then stay on the device, and the split that they come from is let go. Batches are the
    same function of (seed, epoch, start) as those of an `ImageSplit`.

    Args:
        split: the examples, without augmentation.
        tuner: of a method with `frozen_features`, on the device of the split.
        batch_size: examples of one forward pass; changes speed, memory and rounding only.
        precision: fp32 or bf16 autocast, as in training.
        reporter: gets a phase `features`, in examples.
    """

    def __init__(
        self,
        split: LabelledSplit,
        tuner: Tuner,
        batch_size: int,
        *,
        precision: str = "fp32",
        reporter: Reporter = SILENT,
    ) -> None:
        self.names: Sequence[str] = split.names
        self.labels = split.labels
        self._split: LabelledSplit | None = split
        self._tuner, self._batch_size = tuner, batch_size
        self._precision, self._reporter = precision, reporter
        self._pooled = torch.empty(0)

    def __len__(self) -> int:
        return len(self.names)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Global batches in one pass."""
        return -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None,
        epoch: int = 0,
        start_batch: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[dict[str, Tensor]]:
        """`pooled` float32 (B, D), `labels` and `index` int64 (B,), all on the device.

        Arguments and order are those of `ImageSplit.batches`.
        """
        pooled_ND = self.pooled()
        labels_N = self.labels.to(pooled_ND.device)
        for positions in batch_indices(
            len(self),
            batch_size,
            seed=seed,
            epoch=epoch,
            start_batch=start_batch,
            rank=rank,
            world=world,
        ):
            index = torch.from_numpy(positions).to(pooled_ND.device)
            yield {"pooled": pooled_ND[index], "labels": labels_N[index], "index": index}

    def pooled(self) -> Tensor:
        """(N, D) float32 on the device, in the order of the split."""
        if self._split is not None:
            run_over(
                self._tuner,
                self._split,
                self._batch_size,
                self._keep,
                precision=self._precision,
                reporter=self._reporter,
                phase="features",
            )
            self._split = None
        return self._pooled

    def _keep(self, batch: Mapping[str, Tensor], features: Features) -> None:
        """Copies: `features.pooled` may be a view that would keep all tokens alive."""
        shape = (len(self), features.pooled.shape[-1])
        if self._pooled.shape != shape:
            self._pooled = features.pooled.new_empty(shape, dtype=torch.float32)
        self._pooled[batch["index"]] = features.pooled.float()


def differs_in_training(model: nn.Module) -> list[str]:
    """Names of modules whose output in training mode is not that of evaluation mode.

    These are batch norms, and whatever drops at a rate above 0: layers, paths, patches, attention
    (a rate is a float attribute of a module that says "drop" in its own or its class's name).
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) or any(rate > 0 for rate in _drop_rates(module))
    ]


def _drop_rates(module: nn.Module) -> list[float]:
    kind = type(module).__name__
    return [
        value
        for key, value in vars(module).items()
        if isinstance(value, float) and "drop" in f"{kind} {key}".lower()
    ]
