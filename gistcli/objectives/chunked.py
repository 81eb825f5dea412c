"""Cross-entropy over a large vocabulary without ever holding all logits.

Shape suffixes: N = supervised positions, D = width, V = words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Classify = Callable[[Tensor], Tensor]

COPIES = 4
"""Float32 tensors of the size of the logits that a loss and its gradient hold at once, at most."""


def logit_bytes(tokens: int, vocabulary: int) -> int:
    """What loss and gradient of that many tokens take while full logits are held."""
    return COPIES * 4 * tokens * vocabulary


def choose_chunk(tokens: int, vocabulary: int, available: int) -> int | None:
    """Tokens at a time; None where full logits take at most half of the memory that is left.

    The pieces take an eighth of it, whatever the vocabulary.

    Args:
        tokens: supervised tokens of a micro-batch, at most.
        vocabulary: V.
        available: bytes left beside the network, its activations and the optimiser.
    """
    if logit_bytes(tokens, vocabulary) <= available // 2:
        return None
    return max(1, available // 8 // logit_bytes(1, vocabulary))


@contextmanager
def deferred_logits(backbone: Any) -> Iterator[None]:
    """Inside, a causal language model's forward pass makes no logits: they come out as (0, V)."""
    before, backbone.defers_logits = backbone.defers_logits, True
    try:
        yield
    finally:
        backbone.defers_logits = before


def chunked_cross_entropy(
    hidden_ND: Tensor,
    targets_N: Tensor,
    classify: Classify,
    chunk: int,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The sum of CE(classify(h_i), y_i), `chunk` positions at a time.

    Where `classify` trains nothing, each piece's gradient is taken at once in the forward pass,
    so that no product is made twice; else its logits are computed again in the backward pass.

    Returns:
        () float32 sum of the losses, and () int64 number of positions whose largest logit is the
        target's.
    """
    if torch.is_grad_enabled() and classify(hidden_ND[:0].detach()).requires_grad:
        return _recomputed(hidden_ND, targets_N, classify, chunk, label_smoothing)
    total, right = _AtOnce.apply(hidden_ND, targets_N, classify, chunk, label_smoothing)
    return total, right


def token_losses(hidden_ND: Tensor, targets_N: Tensor, classify: Classify, chunk: int) -> Tensor:
    """(N,) float32: -log p(y_i | h_i), without gradients, `chunk` positions at a time."""
    pairs = zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
    with torch.no_grad():
        return torch.cat(
            [F.cross_entropy(classify(h).float(), y, reduction="none") for h, y in pairs]
        )


def _piece(
    hidden_CD: Tensor, targets_C: Tensor, classify: Classify, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    logits_CV = classify(hidden_CD).float()
    loss = F.cross_entropy(logits_CV, targets_C, reduction="sum", label_smoothing=label_smoothing)
    return loss, (logits_CV.detach().argmax(dim=-1) == targets_C).sum()


def _recomputed(
    hidden_ND: Tensor, targets_N: Tensor, classify: Classify, chunk: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    totals, rights = [], []
    for h, y in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
        total, right = checkpoint(
            _piece, h, y, classify, label_smoothing, use_reentrant=False, preserve_rng_state=False
        )
        totals.append(total)
        rights.append(right)
    return torch.stack(totals).sum(), torch.stack(rights).sum()


class _AtOnce(torch.autograd.Function):
    """The sum of the losses, whose gradient is known before anyone asks for it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        targets_N: Tensor,
        classify: Classify,
        chunk: int,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        right = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
        gradient_ND = torch.empty_like(hidden_ND) if wanted else None
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(wanted):
                hidden_CD = hidden_ND[part].detach().requires_grad_(wanted)
                loss, hits = _piece(hidden_CD, targets_N[part], classify, label_smoothing)
            total += loss.detach()
            right += hits
            if gradient_ND is not None:
                # backward passes run outside autocast, also this one
                with torch.autocast(hidden_ND.device.type, enabled=False):
                    (gradient_ND[part],) = torch.autograd.grad(loss, hidden_CD)
        if gradient_ND is not None:
            ctx.save_for_backward(gradient_ND)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * total, None, None, None, None
