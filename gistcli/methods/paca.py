"""Parameter-to-cluster attention (PaCa) over the rows of weights, and the block around it.

Paper: arXiv 2312.00700v1, equations 7, 8 and 10 to 14. The rows of a weight matrix are the tokens.
Shape suffixes: L = layers (the batch), N = d_out (tokens), D = width of a token, M = clusters.
Everything runs in float32, also under autocast: a cluster weight is of the size 1 / N.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(d_in: int, d_out: int, like: Tensor, *, bias: bool = True) -> nn.Linear:
    """A float32 linear map with torch's own start, on the device of `like`."""
    return nn.Linear(d_in, d_out, bias, device=like.device, dtype=torch.float32)


def full_float(device: torch.device) -> torch.autocast:
    """Inside, autocast is off."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, other vectors and the cluster map."""
    return parameter.ndim > 1 and ".cluster." not in name


class KeyMap(nn.Linear):
    """The map to keys, in float32. Its bias is counted but stays as it is: a part that all keys
    have in common cancels in the softmax, so that its gradient is rounding noise.
    """

    def __init__(self, dim: int, like: Tensor) -> None:
        super().__init__(dim, dim, device=like.device, dtype=torch.float32)
        self.bias.requires_grad_(False)


def idle(module: nn.Module) -> set[str]:
    """Names of the key biases."""
    return {f"{name}.bias" for name, m in module.named_modules() if isinstance(m, KeyMap)}


def attend(q_LND: Tensor, k_LMD: Tensor, v_LMD: Tensor, heads: int) -> Tensor:
    """Softmax attention (L, N, D) with the scale 1 / sqrt(D / heads) (equations 10 and 11)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q_LND, k_LMD, v_LMD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """Linear, GELU, linear: (..., width) -> (..., width)."""

    def __init__(self, width: int, hidden: int, like: Tensor) -> None:
        super().__init__()
        self.fc_in = linear(width, hidden, like)
        self.fc_out = linear(hidden, width, like)

    def forward(self, x: Tensor) -> Tensor:
        """The map along the last axis."""
        return self.fc_out(F.gelu(self.fc_in(x)))


class ClusterAttention(nn.Module):
    """Every token attends to M soft clusters of all tokens: linear in N.

    Args:
        dim: D, a multiple of `heads`.
        clusters: M.
        heads: attention heads.
        like: a tensor on the device to use.
    """

    def __init__(self, dim: int, clusters: int, heads: int, like: Tensor) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.v, self.proj = (linear(dim, dim, like) for _ in range(3))
        self.k = KeyMap(dim, like)
        self.cluster = linear(dim, clusters, like)

    def assign(self, x_LND: Tensor) -> Tensor:
        """C (L, N, M) = sigmoid(h(x)) / N, between 0 and 1 / N (equation 14)."""
        return self.cluster(x_LND).sigmoid() / x_LND.shape[1]

    def forward(self, x_LND: Tensor) -> Tensor:
        """(L, N, D): queries from the tokens, keys and values from their clusters."""
        # equation 13: the clusters are sums of tokens, on the unit sphere
        z_LMD = F.normalize(self.assign(x_LND).mT @ x_LND, dim=-1)
        return self.proj(attend(self.q(x_LND), self.k(z_LMD), self.v(z_LMD), self.heads))


class MixingBlock(nn.Module):
    """w + mixing(Norm(w)), then w + FFN(Norm(w)), with the l2 norm of each token.

    Args:
        mixing: acts over the tokens, (L, N, D) -> (L, N, D); None leaves the first half out.
        dim: D.
        ratio: hidden width of the FFN over D.
        like: a tensor on the device to use.
    """

    def __init__(self, mixing: nn.Module | None, dim: int, ratio: int, like: Tensor) -> None:
        super().__init__()
        self.mixing = mixing
        self.ffn = FeedForward(dim, ratio * dim, like)

    def forward(self, w_LND: Tensor) -> Tensor:
        """(L, N, D) -> (L, N, D) (equations 7 and 8)."""
        if self.mixing is not None:
            w_LND = w_LND + self.mixing(F.normalize(w_LND, dim=-1))
        return w_LND + self.ffn(F.normalize(w_LND, dim=-1))
