"""What training takes, item by item, from networks on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from gistcli.methods.base import Tuner
from gistcli.train.tracing import Peak

MOMENTS = {"adamw": 2, "sgd": 1}
"""Float32 copies of what is trained that an optimiser keeps."""


@dataclass(frozen=True)
class Footprint:
    """Bytes held at once, at most.

    Attributes:
        weights: of the network as it was loaded, in its dtype.
        trained: parameters in float32.
        gradients: of them.
        optimiser: its moments.
        activations: of one micro-batch, kept for the backward pass or in use at its peak.
        logits: of a language model, with their gradient, where they are part of the peak.
    """

    weights: int
    trained: int
    gradients: int
    optimiser: int
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.fixed + self.activations + self.logits

    @property
    def fixed(self) -> int:
        """What does not depend on the micro-batch."""
        return self.weights + self.training

    @property
    def training(self) -> int:
        """Parameters, gradients and moments."""
        return self.trained + self.gradients + self.optimiser

    def with_peak(self, peak: Peak) -> Footprint:
        """The same with what a step takes."""
        return replace(self, activations=peak.bytes - peak.logits, logits=peak.logits)

    def items(self) -> dict[str, int]:
        """Name -> bytes, without what is nothing."""
        rest = {
            "weights": self.weights,
            "trained": self.trained,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
            "activations": self.activations,
            "logits": self.logits,
        }
        return {name: size for name, size in rest.items() if size}


def fixed_footprint(weights: int, tuner: Tuner, optimiser: str) -> Footprint:
    """What is there before the first step.

    Args:
        weights: bytes of the network, see `weight_bytes`.
        tuner: attached, on any device.
        optimiser: adamw or sgd.
    """
    trained = sum(4 * t.parameter.numel() for t in tuner.trainable().values())
    return Footprint(weights, trained, trained, MOMENTS[optimiser] * trained)


def weight_bytes(model: nn.Module, sizes: Mapping[str, float] | None = None) -> int:
    """Bytes of all parameters and buffers, each shared one once.

    Args:
        model: on any device.
        sizes: bytes an element of parameters, by name, that will be kept in another form.
    """
    found: dict[int, float] = {}
    for name, tensor in _tensors(model):
        size = (sizes or {}).get(name, float(tensor.element_size()))
        found.setdefault(id(tensor), tensor.numel() * size)
    return int(sum(found.values()))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
