"""Objective: what DDP and FSDP wrap, and all that the training loop knows of a task."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from gistcli.methods.base import Tuner

Batch = Mapping[str, Tensor]
"""Everything of one example in one row, on the device of the network.

Pictures: `pixels` (B, 3, H, W) float32. Text: `input_ids` (B, T) int64, `attention_mask` (B, T),
for packed rows `position_ids` and `segments` (B, T). `labels` are (B,) int64 classes, (B,) float
numbers, or (B, T) int64 tokens with -100 where nothing is learnt. `index` (B,) int64 is the place
in the split.
"""


@dataclass(frozen=True)
class Losses:
    """One micro-batch's share of a window's loss.

    Every figure is a sum over the micro-batch divided by the denominator of the whole window, so
    that adding up the micro-batches (of all processes) gives the mean over the window.

    Attributes:
        total: () what is differentiated.
        parts: () each, detached: the terms that `total` is the sum of.
        figures: () each, detached: other means worth showing, such as the accuracy.
        logits: detached outputs of the micro-batch.
    """

    total: Tensor
    parts: dict[str, Tensor]
    figures: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


class Objective(nn.Module, abc.ABC):
    """Holds a tuner and the network it drives, both as submodules, and defines a loss on them.

    The tuner keeps its backbone outside its own module tree; registering both here is what lets
    `.to()`, `.train()` and DDP see every parameter exactly once.
    """

    def __init__(self, tuner: Tuner) -> None:
        super().__init__()
        self.tuner = tuner
        self.model = tuner.backbone.model

    @abc.abstractmethod
    def count(self, batch: Batch) -> float:
        """How many units (examples, tokens) the loss of `batch` is a sum over."""

    @abc.abstractmethod
    def forward(self, batch: Batch, denominator: float) -> Losses:
        """The losses of a micro-batch.

        Args:
            batch: a micro-batch on the device of the network.
            denominator: the sum of `count` over all micro-batches of the optimiser step, on all
                processes.
        """
