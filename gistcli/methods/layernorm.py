"""LayerNorm tuning: the scales and shifts of all norm layers (arXiv 2312.11420)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from gistcli.methods.base import Recommended
from gistcli.methods.subset import Subset

TORCH_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
OTHER_NORMS = re.compile(r"(rms|layer|group|simple)norm", re.IGNORECASE)
"""Names of norm classes that timm and transformers derive from `nn.Module` directly."""


class LayerNorm(Subset):
    """Train the affine parameters of every norm layer."""

    name: ClassVar[str] = "layernorm"
    summary: ClassVar[str] = "scales and shifts of all norm layers"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(1e-3, 3e-3, 1e-4),
        "text": Recommended(1e-3, 1e-3, 0.0, clip_norm=1.0),
    }

    def choose(self, model: nn.Module) -> list[nn.Parameter]:
        """What norm layers hold themselves; a layer is recognised by its class."""
        norms = [m for m in model.modules() if is_norm(m)]
        return [p for m in norms for p in m.parameters(recurse=False)]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm, RMSNorm or GroupNorm of torch, timm or transformers."""
    if isinstance(module, TORCH_NORMS):
        return True
    return OTHER_NORMS.search(type(module).__name__) is not None
