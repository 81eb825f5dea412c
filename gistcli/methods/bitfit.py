"""BitFit: the biases that a network has, and nothing else (arXiv 2106.10199)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from gistcli.methods.base import Recommended
from gistcli.methods.subset import Subset

NAMES = frozenset({"bias", "q_bias", "k_bias", "v_bias"})
"""Last names of biases; timm keeps those of a fused qkv beside it (BEiT, Eva, SwinV2)."""


class BitFit(Subset):
    """Train every bias of linear maps, norms and the patch embedding."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "the biases that the network has"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-3, 3e-3, 1e-4),
        "text": Recommended(1e-3, 1e-3, 0.0, clip_norm=1.0),
    }

    linear_only: bool = False
    """Only biases of linear layers, as in the baseline of the GIFT paper."""

    def choose(self, model: nn.Module) -> list[nn.Parameter]:
        """By last name; with `linear_only` the biases that `nn.Linear` modules hold."""
        if self.linear_only:
            linears = (m for m in model.modules() if isinstance(m, nn.Linear))
            return [m.bias for m in linears if m.bias is not None]
        return [p for n, p in model.named_parameters() if n.rpartition(".")[2] in NAMES]
