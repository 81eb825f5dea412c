"""The two maps of a bottleneck, down and up, as adapters and Convpass use them.

Shape suffixes: D = width of the network, H = bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.methods.base import full_precision

ActivationName = Literal["gelu", "quick_gelu", "relu"]


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the approximation of GELU that CLIP uses."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[ActivationName, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}


class Bottleneck(nn.Module):
    """down (H, D) and up (D, H) with zero biases; whoever makes one starts the two weights.

    Args:
        width: D.
        dim: H.
        like: a tensor on the device to use.
    """

    def __init__(self, width: int, dim: int, like: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(full_precision((dim, width), like))
        self.down_bias = nn.Parameter(full_precision((dim,), like).zero_())
        self.up = nn.Parameter(full_precision((width, dim), like))
        self.up_bias = nn.Parameter(full_precision((width,), like).zero_())

    def reduce(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., H) in the dtype of x."""
        return F.linear(x, self.down.to(x.dtype), self.down_bias.to(x.dtype))

    def expand(self, h: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """(..., H) -> (..., D), times `scale` (a number, or one per channel (D,))."""
        up_DH: Tensor = self.up
        bias_D: Tensor = self.up_bias
        # the factor goes into the weight, which is small, not into the activations
        if isinstance(scale, Tensor):
            up_DH, bias_D = scale[:, None] * up_DH, scale * bias_D
        elif scale != 1:
            up_DH, bias_D = scale * up_DH, scale * bias_D
        return F.linear(h, up_DH.to(h.dtype), bias_D.to(h.dtype))
