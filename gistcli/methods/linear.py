"""Linear probing: a new head on frozen features, the baseline that every method has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from gistcli.backbones.base import Backbone
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.errors import NotSupported
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner
from gistcli.methods.merged import Merged


class Linear(Method):
    """Train the head alone."""

    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "linear probing: a new head on frozen features"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-3, 3e-3, 1e-4),
        "text": Recommended(3e-3, 3e-3, 0.0),
    }

    def capabilities(self) -> Capabilities:
        """Merges by writing the head; trains on features that can be kept."""
        return Capabilities(merge=None, frozen_features=True)

    def attach(self, backbone: Backbone, *, head: bool = True) -> LinearTuner:
        """Own the head.

        Raises:
            NotSupported: a language model, which has no head to train.
        """
        if head and not backbone.head_names():
            raise NotSupported(
                f"linear trains the head alone, and {backbone.architecture} has none of its own.",
                "Choose another method, or task.type classification.",
            )
        return LinearTuner(self, backbone, head=head)


class LinearTuner(Tuner):
    """Nothing but the head."""

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Features of `pixels`; of `pooled` (B, D), where a batch has it, the logits alone.

        The latter come without tokens: T is 0, and the layout is empty.
        """
        pooled_BD = batch.get("pooled")
        if pooled_BD is None:
            return super().forward(batch)
        logits_BK = self.backbone.classify(pooled_BD)
        return Features(pooled_BD[:, None][:, :0], pooled_BD, logits_BK, TokenLayout({}, (0, 0)))

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        return Merged(patches={}, new=head)
