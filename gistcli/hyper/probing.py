"""Which trained tensors a prefix depends on, whatever the method that makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gistcli.backbones.prefix import Prefix
from gistcli.methods.base import Tuner


def unreached(tuner: Tuner, make: Callable[[], Prefix]) -> frozenset[str]:
    """Names of trained tensors that no gradient reaches from the keys and values of a prefix.

    In the last layer that is all that acts behind keys and values. A single pass gives such tensors
    gradients of 0, which those with a zero start beside them have too: only the graph tells.

    Args:
        tuner: what is asked for.
        make: a prefix with its graph, for which the tuner acts.
    """
    named, fired = tuner.trainable(), set(tuner.switch.fired)
    with torch.enable_grad():
        prefix = make()
        total = prefix.keys.float().sum() + prefix.values.float().sum()
        parameters = [t.parameter for t in named.values()]
        found = torch.autograd.grad(total, parameters, allow_unused=True)
    tuner.switch.fired = fired
    return frozenset(n for n, g in zip(named, found, strict=True) if g is None)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Inside, nothing drops out and no activation is recomputed."""
    modes = {module: module.training for root in modules for module in root.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
