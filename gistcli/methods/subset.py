"""Methods that train some of the backbone's own parameters and add none."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from gistcli.backbones.base import Backbone
from gistcli.methods.base import Capabilities, Method, Tuner
from gistcli.methods.merged import Merged, Patch


class Subset(Method):
    """Train a subset of the parameters from their pretrained values."""

    def capabilities(self) -> Capabilities:
        """Merges by writing the tensors; does not act through sites."""
        return Capabilities(merge=None, gateable=False)

    def attach(self, backbone: Backbone, *, head: bool = True) -> SubsetTuner:
        """Own the chosen parameters; the head in a group of its own."""
        return SubsetTuner(self, backbone, head=head)

    @abc.abstractmethod
    def choose(self, model: nn.Module) -> Sequence[nn.Parameter]:
        """The parameters to train, in any order; those of the head are left out afterwards."""


class SubsetTuner(Tuner):
    """Owns the parameters that its method chooses."""

    def __init__(self, method: Subset, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        others = {*backbone.head_names(), *backbone.unused_names()}
        chosen = {id(p) for p in method.choose(backbone.model)}
        parameters = backbone.model.named_parameters()
        self.own([n for n, p in parameters if id(p) in chosen and n not in others])
        self.require_trainable()

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        tuned = {n: p.detach() for n, (p, group) in self.owned.items() if group == "method"}
        for name in self.backbone.transposed_keys() & tuned.keys():
            tuned[name] = tuned[name].t()
        return Merged(patches={n: _constant(t) for n, t in tuned.items()}, new=head)


def _constant(tuned: Tensor) -> Patch:
    def patch(base: Tensor) -> Tensor:
        return tuned.to(base)

    return patch
