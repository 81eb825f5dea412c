"""SSF: scale and shift the output of every affine module (arXiv 2210.08823, equation 2).

y' = gamma * y + beta, so that W' = gamma W (by rows) and b' = gamma b + beta
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from gistcli.backbones.base import Backbone
from gistcli.backbones.sites import Output
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision
from gistcli.methods.low_rank import parameter_key
from gistcli.methods.merged import Merged, Patch

DEVIATION = 0.02
"""Of gamma around 1 and of beta around 0 at the start, as published: not the identity."""


class Ssf(Method):
    """One scale and one shift per channel behind norms, linear maps and the patch embedding."""

    name: ClassVar[str] = "ssf"
    summary: ClassVar[str] = "scale and shift the output of every norm and linear map"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-3, 3e-3, 1e-4, clip_norm=1.0),
        "text": Recommended(1e-3, 1e-3, 0.0, clip_norm=1.0),
    }

    def starts_as_base(self) -> bool:
        """No: gamma and beta start at random."""
        return False

    def capabilities(self) -> Capabilities:
        """Merges exactly; a token gate does not reach the patch embedding, which has no tokens."""
        return Capabilities(merge=None, gateable=False)

    def attach(self, backbone: Backbone, *, head: bool = True) -> SsfTuner:
        """gamma and beta for every output; no beta where the module has no bias to take it up."""
        return SsfTuner(self, backbone, head=head)


class SsfTuner(Tuner):
    """Holds gamma and beta (width,) of every output, by module.

    Of the activations the backward pass keeps y, once per output: gamma's gradient needs it.
    """

    method: Ssf

    def __init__(self, method: Ssf, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        self.gamma, self.beta = nn.ParameterDict(), nn.ParameterDict()
        self.outputs = {parameter_key(output.name): output for output in backbone.outputs()}
        for key, output in self.outputs.items():
            output.map_output(self._scale(key), self.switch)
            self._create(key, output)
        self.require_trainable()

    def _create(self, key: str, output: Output) -> None:
        weight = output.module.weight
        assert isinstance(weight, Tensor), output.name
        gamma = full_precision((output.width,), weight).normal_(1, DEVIATION)
        self.gamma[key] = nn.Parameter(gamma)
        if output.has_bias:
            self.beta[key] = nn.Parameter(torch.empty_like(gamma).normal_(0, DEVIATION))

    def _scale(self, key: str) -> Callable[[Tensor], Tensor]:
        def scale(y: Tensor) -> Tensor:
            # gamma stays float32: near 1, bfloat16 has steps of 0.8 %. What is kept is y itself
            if key in self.beta:
                return torch.addcmul(self.beta[key], self.gamma[key], y)
            return self.gamma[key] * y

        return scale

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        patches: dict[str, Patch] = {}
        for key, output in self.outputs.items():
            gamma = self.gamma[key].detach()
            patches[f"{output.name}.weight"] = _scaled(gamma, offset=output.offset)
            if key in self.beta:
                patches[f"{output.name}.bias"] = _scaled(gamma, self.beta[key].detach())
        return Merged(patches, head)


def _scaled(gamma: Tensor, beta: Tensor | None = None, offset: float = 0.0) -> Patch:
    def patch(base: Tensor) -> Tensor:
        scaled = gamma.to(base).view(-1, *[1] * (base.ndim - 1)) * (base + offset) - offset
        return scaled if beta is None else scaled + beta.to(base)

    return patch
