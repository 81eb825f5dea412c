"""Linear probing: a new head on frozen features, the baseline that every method has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from gistcli.backbones.base import Backbone
from gistcli.methods.base import Capabilities, Merged, Method, Recommended, Tuner


class Linear(Method):
    """Train the head alone."""

    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "linear probing: a new head on frozen features"
    recommended: ClassVar[Mapping[str, Recommended]] = {"vision": Recommended(3e-3, 3e-3, 1e-4)}

    def capabilities(self) -> Capabilities:
        """Merges by writing the head."""
        return Capabilities(merge=None)

    def attach(self, backbone: Backbone, *, head: bool = True) -> LinearTuner:
        """Own the head."""
        return LinearTuner(self, backbone, head=head)


class LinearTuner(Tuner):
    """Nothing but the head."""

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        return Merged(patches={}, new=head)
