"""Full fine-tuning: every parameter of the backbone is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor

from gistcli.backbones.base import Backbone
from gistcli.methods.base import Capabilities, Merged, Method, Recommended, Tuner


class Full(Method):
    """Train everything, from the pretrained values."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "full fine-tuning: every parameter is trained"
    recommended: ClassVar[Mapping[str, Recommended]] = {"vision": Recommended(1e-4, 3e-3, 1e-4)}

    def capabilities(self) -> Capabilities:
        """Merges by writing all tensors; does not act through sites."""
        return Capabilities(merge=None, gateable=False)

    def attach(self, backbone: Backbone, *, head: bool = True) -> FullTuner:
        """Own every parameter; the head in a group of its own."""
        return FullTuner(self, backbone, head=head)


class FullTuner(Tuner):
    """Owns the whole network."""

    def __init__(self, method: Full, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        heads = set(backbone.head_names())
        self.own([n for n, _ in backbone.model.named_parameters() if n not in heads])
        self.require_trainable()

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        tuned = {n: p.detach() for n, (p, group) in self.owned.items() if group == "method"}
        return Merged(patches={n: _constant(t) for n, t in tuned.items()}, new=head)


def _constant(tuned: Tensor) -> Callable[[Tensor], Tensor]:
    def patch(base: Tensor) -> Tensor:
        return tuned.to(base)

    return patch
