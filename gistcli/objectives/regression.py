"""One number an example: the squared error, whatever the modality."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli.objectives.base import Batch, Losses, Objective


class Regression(Objective):
    """Squared error of the tuned network's only output, plus the tuner's own terms.

    L = sum_i (z_i - y_i)^2 / N + sum_k aux_k, with N the examples of the window. The head has one
    output; `labels` (B,) are floats.
    """

    def count(self, batch: Batch) -> float:
        """The number of examples."""
        return float(batch["labels"].shape[0])

    def forward(self, batch: Batch, denominator: float) -> Losses:
        """Loss and its parts, of a micro-batch."""
        labels_B = batch["labels"].float()

        def criterion(logits_B1: Tensor) -> Tensor:
            error = F.mse_loss(logits_B1.float().squeeze(-1), labels_B, reduction="sum")
            return error / denominator

        features = self.tuner(batch)
        terms = {"regression": criterion(features.logits)}
        share = self.count(batch) / denominator
        terms |= self.tuner.auxiliary(features, batch, criterion, share)
        return Losses(
            total=torch.stack(list(terms.values())).sum(),
            parts={name: term.detach() for name, term in terms.items()},
            logits=features.logits.detach(),
        )
