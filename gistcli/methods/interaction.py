"""Knowledge interaction: how far the logits of the gist token are from those of the class token.

With p = softmax(z / T) of the class token and q = softmax(g / T) of the gist token,

    fkld = KL(p || q)        rkld = KL(q || p)
    bkld = KL(p || q) + KL(q || p) = sum_k (p_k - q_k) (log p_k - log q_k)

a sum over the classes and a mean over the batch, without a factor T^2 (GIST, arXiv 2312.07255).
Shape suffixes: B = batch, K = classes. All are computed in float32, give () and send gradients
into both arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

Interaction = Callable[[Tensor, Tensor, float], Tensor]
"""Logits z (B, K) of the class token, g (B, K) of the gist token, temperature."""


def fkld(z_BK: Tensor, g_BK: Tensor, temperature: float) -> Tensor:
    """KL(p || q): the class token's distribution is the target."""
    log_p_BK, log_q_BK = _log_softmax(z_BK, temperature), _log_softmax(g_BK, temperature)
    return F.kl_div(log_q_BK, log_p_BK, reduction="batchmean", log_target=True)


def rkld(z_BK: Tensor, g_BK: Tensor, temperature: float) -> Tensor:
    """KL(q || p): the gist token's distribution is the target."""
    return fkld(g_BK, z_BK, temperature)


def bkld(z_BK: Tensor, g_BK: Tensor, temperature: float) -> Tensor:
    """KL(p || q) + KL(q || p), the Jeffreys divergence; as published."""
    log_p_BK, log_q_BK = _log_softmax(z_BK, temperature), _log_softmax(g_BK, temperature)
    return ((log_p_BK.exp() - log_q_BK.exp()) * (log_p_BK - log_q_BK)).sum(dim=-1).mean()


def bernoulli(z_BK: Tensor, g_BK: Tensor, temperature: float) -> Tensor:
    """The Jeffreys divergence of every class by itself, sigmoid for softmax: for several labels.

    With p = sigmoid(z / T) and log p / (1 - p) = z / T it is sum_k (p_k - q_k) (z_k - g_k) / T.
    """
    z_BK, g_BK = z_BK.float() / temperature, g_BK.float() / temperature
    return ((z_BK.sigmoid() - g_BK.sigmoid()) * (z_BK - g_BK)).sum(dim=-1).mean()


def mse(z_BK: Tensor, g_BK: Tensor, temperature: float) -> Tensor:
    """The mean squared difference of the raw logits; no temperature."""
    return F.mse_loss(g_BK.float(), z_BK.float())


def cosine(z_BK: Tensor, g_BK: Tensor, temperature: float) -> Tensor:
    """1 - cos(z, g) of the raw logits, so that their lengths do not matter; no temperature."""
    return (1 - F.cosine_similarity(z_BK.float(), g_BK.float(), dim=-1)).mean()


def _log_softmax(logits_BK: Tensor, temperature: float) -> Tensor:
    return (logits_BK.float() / temperature).log_softmax(dim=-1)


INTERACTIONS: Mapping[str, Interaction] = {
    "bkld": bkld,
    "fkld": fkld,
    "rkld": rkld,
    "bernoulli": bernoulli,
    "mse": mse,
    "cosine": cosine,
}
OF_SOFTMAX = frozenset({"bkld", "fkld", "rkld"})
"""Those that are always 0 for a single output."""
SOFTENED = OF_SOFTMAX | {"bernoulli"}
"""Those that the temperature acts on."""
