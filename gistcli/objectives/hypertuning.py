"""What a hypernetwork learns from: answers that follow from examples which only its prefix holds.

Shape suffixes: N = supervised positions, D = width, V = vocabulary.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gistcli.backbones.layout import Features
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.objectives.base import Batch
from gistcli.objectives.causal_lm import CausalLM
from gistcli.objectives.chunked import Classify, deferred_logits


class Hypertuning(CausalLM):
    """Cross-entropy of the answers of queries, and what the full context would have answered.

    L = sum_i CE(z_i, y_i) / N + w T^2 sum_i KL(softmax(t_i / T) || softmax(z_i / T)) / N

    with t the logits of the frozen network that has the examples themselves in sight (as in MEND,
    arXiv 2403.06914), w `hyper.distill` and T `hyper.temperature`. The second term is there in
    training alone, and only where w > 0, for it takes another forward pass.
    """

    task: ClassVar[str] = "hypertuning"
    tuner: HyperTuner

    def further(self, features: Features, batch: Batch, denominator: float) -> dict[str, Tensor]:
        """`distill`, w T^2 KL."""
        hyper = self.tuner.method.hyper
        if not hyper.distill or not torch.is_grad_enabled():
            return {}
        backbone, where_BT = self.tuner.network, self._supervised(batch).where
        with deferred_logits(backbone):
            taught_ND = self.tuner.in_context(batch).pooled[where_BT]
        total = divergence(
            features.pooled[where_BT],
            taught_ND,
            backbone.classify,
            hyper.temperature,
            self.chunk_tokens,
        )
        weight = hyper.distill * hyper.temperature**2
        return {"distill": weight * total / denominator}


class Compression(Hypertuning):
    """The same of documents: A and D become gists, and C is told from them and B."""

    task: ClassVar[str] = "compression"


def divergence(
    hidden_ND: Tensor,
    taught_ND: Tensor,
    classify: Classify,
    temperature: float,
    chunk: int | None = None,
) -> Tensor:
    """() float32: the sum of KL(softmax(t / T) || softmax(z / T)), t without gradients.

    Args:
        hidden_ND: behind the last norm, of which z = classify(hidden).
        taught_ND: the same, of which t is made.
        classify: (N, D) -> (N, V).
        temperature: T.
        chunk: positions whose logits are held at a time, and made again in the backward pass; None
            holds all.
    """

    def piece(hidden_CD: Tensor, taught_CD: Tensor) -> Tensor:
        with torch.no_grad():
            t_CV = F.log_softmax(classify(taught_CD).float() / temperature, dim=-1)
        z_CV = F.log_softmax(classify(hidden_CD).float() / temperature, dim=-1)
        return F.kl_div(z_CV, t_CV, reduction="sum", log_target=True)

    if chunk is None:
        return piece(hidden_ND, taught_ND)
    pairs = zip(hidden_ND.split(chunk), taught_ND.split(chunk), strict=True)
    found = [
        checkpoint(piece, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in pairs
    ]
    total: Tensor = torch.stack(found).sum()
    return total
