"""Log-likelihoods of supervised tokens, without ever holding all logits.

Shape suffixes: B = rows, T = positions, N = supervised positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gistcli.backbones.layout import Features
from gistcli.evaluate.classify import autocast
from gistcli.evaluate.language.models import LanguageModel
from gistcli.objectives.chunked import logit_bytes, token_losses

PIECE_BYTES = 2**28
"""What the logits of the positions that are scored at a time may take."""


def batch_losses(
    backbone: LanguageModel,
    batch: Mapping[str, Tensor],
    features: Features,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """-log p of every supervised token of a batch.

    Args:
        backbone: the network.
        batch: with `labels` (B, T), -100 where nothing is scored.
        features: of its forward pass, for which `deferred_logits` saves work.
        precision: of the forward pass.

    Returns:
        (N,) int64 row of each token, and (N,) float32 nats.
    """
    where_BT, targets_N = backbone.supervised(batch)
    chunk = max(1, PIECE_BYTES // logit_bytes(1, backbone.config.vocab_size))
    with torch.no_grad(), autocast(targets_N.device, precision):
        hidden_ND = features.pooled[where_BT]
        losses_N = token_losses(hidden_ND, targets_N, backbone.classify, chunk)
    return where_BT.nonzero()[:, 0], losses_N
