"""Full fine-tuning: every parameter of the backbone is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from gistcli.methods.base import Recommended
from gistcli.methods.subset import Subset


class Full(Subset):
    """Train everything, from the pretrained values."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "full fine-tuning: every parameter is trained"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-5, 3e-3, 1e-4),
        "text": Recommended(2e-5, 1e-3, 0.01, clip_norm=1.0),
    }

    def choose(self, model: nn.Module) -> list[nn.Parameter]:
        """All of them."""
        return list(model.parameters())
