"""One label an example: cross-entropy, whatever the modality."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli.methods.base import Tuner
from gistcli.objectives.base import Batch, Losses, Objective


class Classification(Objective):
    """Cross-entropy of the tuned network's logits, plus the tuner's own terms.

    L = sum_i CE(z_i, y_i) / N + sum_k aux_k, with N the examples of the window. With label
    smoothing e the target is (1 - e) one-hot + e / K.

    Args:
        tuner: attached to a backbone whose head has K outputs.
        label_smoothing: e, from 0 to 1.
    """

    def __init__(self, tuner: Tuner, label_smoothing: float = 0.0) -> None:
        super().__init__(tuner)
        self.label_smoothing = label_smoothing

    def count(self, batch: Batch) -> float:
        """The number of examples."""
        return float(batch["labels"].shape[0])

    def forward(self, batch: Batch, denominator: float) -> Losses:
        """Loss, its parts, and the share of right answers of a micro-batch."""
        labels_B = batch["labels"]

        def criterion(logits_BK: Tensor) -> Tensor:
            loss = F.cross_entropy(
                logits_BK.float(), labels_B, reduction="sum", label_smoothing=self.label_smoothing
            )
            return loss / denominator

        features = self.tuner(batch)
        terms = {"classification": criterion(features.logits)}
        share = self.count(batch) / denominator
        terms |= self.tuner.auxiliary(features, batch, criterion, share)
        logits_BK = features.logits.detach()
        right = (logits_BK.argmax(dim=-1) == labels_B).sum() / denominator
        return Losses(
            total=torch.stack(list(terms.values())).sum(),
            parts={name: term.detach() for name, term in terms.items()},
            figures={"accuracy": right},
            logits=logits_BK,
        )
