"""How well a language model predicts the supervised tokens of a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gistcli.backbones.layout import Features
from gistcli.evaluate.classify import EvaluationSplit, run_over
from gistcli.evaluate.language.likelihood import batch_losses
from gistcli.evaluate.language.models import language_model
from gistcli.methods.base import Tuner
from gistcli.objectives.chunked import deferred_logits
from gistcli.reporting import SILENT, Reporter


def perplexity(
    tuner: Tuner,
    split: EvaluationSplit,
    batch_size: int,
    *,
    forward: Callable[[Mapping[str, Tensor]], Features] | None = None,
    precision: str = "fp32",
    reporter: Reporter = SILENT,
    phase: str = "evaluate",
) -> dict[str, Any]:
    """The mean over all supervised tokens of the split, each weighing the same.

    Args:
        tuner: attached to a language model; left in the mode it was in.
        split: batches with `labels` (B, T).
        batch_size: rows at a time; changes speed, memory and rounding only.
        forward: see `run_over`.
        precision: fp32 or bf16 autocast, as in training.
        reporter: gets a phase of that name, in rows.
        phase: its name.

    Returns:
        `n` rows, `tokens`, `loss` in nats a token, `perplexity` = exp(loss); both are 0 where no
        token is supervised, and the perplexity is None where it is beyond float64.

    Raises:
        NotSupported: the network predicts no tokens.
    """
    backbone = language_model(tuner)
    with deferred_logits(backbone):
        taken = run_over(
            tuner,
            split,
            batch_size,
            lambda batch, features: batch_losses(backbone, batch, features, precision)[1].double(),
            forward=forward,
            precision=precision,
            reporter=reporter,
            phase=phase,
        )
    tokens = sum(len(losses) for losses in taken)
    loss = sum(float(losses.sum()) for losses in taken) / tokens if tokens else 0.0
    most = math.log(2.0) * 1023
    figure = (math.exp(loss) if loss < most else None) if tokens else 0.0
    return {"n": len(split), "tokens": tokens, "loss": loss, "perplexity": figure}
