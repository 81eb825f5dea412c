"""The next token, wherever it is supervised: cross-entropy of language models."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones.layout import Features
from gistcli.backbones.supervision import Supervised
from gistcli.errors import DataError
from gistcli.methods.base import Tuner
from gistcli.objectives.base import Batch, Losses, Objective
from gistcli.objectives.chunked import chunked_cross_entropy, deferred_logits


class CausalLM(Objective):
    """Cross-entropy of the tokens that are supervised, plus the tuner's own terms.

    L = sum_i CE(z_i, y_i) / N + sum_k aux_k, with N the supervised tokens of the whole window of
    micro-batches and processes: each token weighs the same, however long its example is. The
    softmax is float32. With label smoothing e the target is (1 - e) one-hot + e / V.

    Args:
        tuner: attached to a causal language model.
        label_smoothing: e, from 0 to 1.
        chunk_tokens: supervised positions whose logits are held at a time; None holds all. The
            loss is the same; see `chunked.choose_chunk`.
    """

    task: ClassVar[str] = "causal_lm"
    """Its name among the parts of the loss."""

    def __init__(
        self, tuner: Tuner, label_smoothing: float = 0.0, chunk_tokens: int | None = None
    ) -> None:
        super().__init__(tuner)
        self.label_smoothing = label_smoothing
        self.chunk_tokens = chunk_tokens

    def count(self, batch: Batch) -> float:
        """The number of supervised tokens."""
        return float(len(self._supervised(batch).targets))

    def _supervised(self, batch: Batch) -> Supervised:
        backbone: Any = self.tuner.backbone
        found: Supervised = backbone.supervised(batch)
        return found

    def forward(self, batch: Batch, denominator: float) -> Losses:
        """Loss, its parts, and the share of supervised tokens whose logit is the largest.

        Raises:
            DataError: the window has no supervised token.
        """
        if denominator == 0:
            raise DataError(
                "No token of this step is supervised, so that nothing can be learnt from it.",
                "Look at two examples with their mask (--dry-run).",
            )
        where_BT, targets_N = self._supervised(batch)

        def criterion(logits_NV: Tensor) -> Tensor:
            loss = F.cross_entropy(
                logits_NV.float(), targets_N, reduction="sum", label_smoothing=self.label_smoothing
            )
            return loss / denominator

        if self.chunk_tokens is None:
            features = self.tuner(batch)
            loss = criterion(features.logits)
            right = (features.logits.detach().argmax(dim=-1) == targets_N).sum()
        else:
            backbone = self.tuner.backbone
            with deferred_logits(backbone):
                features = self.tuner(batch)
            total, right = chunked_cross_entropy(
                features.pooled[where_BT],
                targets_N,
                backbone.classify,
                self.chunk_tokens,
                self.label_smoothing,
            )
            loss = total / denominator
        share = len(targets_N) / denominator
        terms = {self.task: loss, **self.tuner.auxiliary(features, batch, criterion, share)}
        terms |= self.further(features, batch, denominator)
        return Losses(
            total=torch.stack(list(terms.values())).sum(),
            parts={name: term.detach() for name, term in terms.items()},
            figures={"token_accuracy": right / denominator},
        )

    def further(self, features: Features, batch: Batch, denominator: float) -> dict[str, Tensor]:
        """Terms of this objective alone, by name, each already weighted."""
        return {}


class Seq2SeqLM(CausalLM):
    """The same of an encoder-decoder, whose labels are the tokens of the target."""

    task: ClassVar[str] = "seq2seq"
