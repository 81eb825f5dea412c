"""Proofs, in the first two steps, that what should be trained is being trained.

A hook that never fires, a parameter that the graph does not reach, an optimiser that holds another
tensor than the network: each of them trains on without an error and ends in a worse number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from gistcli.errors import NotSupported
from gistcli.methods.base import Trained, Tuner


def require_fired(tuner: Tuner) -> None:
    """Every site acted in the forward pass just made.

    Raises:
        NotSupported: the sites that did not.
    """
    silent = [site.name for site in tuner.sites if site.name not in tuner.fired()]
    if silent:
        raise NotSupported(
            f"{_listed(silent)} did not act: the network calls the weight, not the layer.",
            "Choose other method.targets or another backbone; please report the pair.",
        )


def require_gradients(trainable: Mapping[str, Trained], idle: Iterable[str] = ()) -> None:
    """Every trained tensor has a gradient after the first backward pass.

    Raises:
        NotSupported: those that have none.
    """
    exempt = set(idle)
    dry = [n for n, t in trainable.items() if t.parameter.grad is None and n not in exempt]
    if dry:
        raise NotSupported(
            f"{_listed(dry)} got no gradient in the first step, so nothing would be learnt there.",
            "The method and this backbone do not fit together; please report the pair.",
        )


class Movement:
    """Compares every trained tensor with what it was before the first step.

    Zero inits keep some tensors of most methods still in the first step (the gradient of phi is 0
    while psi is 0); after the second step at a rate above 0 all must have moved. A change so small
    that float32 cannot hold it is waited for: the first steps of a long warm-up, or gradients far
    below the epsilon of Adam (the clusters of GIFT v1).
    """

    def __init__(self, trainable: Mapping[str, Trained], idle: Iterable[str] = ()) -> None:
        exempt = set(idle)
        self._parameters = {n: t.parameter for n, t in trainable.items() if n not in exempt}
        self._before = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._steps = dict.fromkeys(self._before, 0)

    @property
    def done(self) -> bool:
        """Whether every tensor has moved."""
        return not self._before

    def check(self, optimiser: Optimizer) -> None:
        """Call after each optimiser step, until `done`.

        Raises:
            NotSupported: tensors that have not moved, and should have.
        """
        rates = {n: g["lr"] for g in optimiser.param_groups for n in g["names"]}
        group = optimiser.param_groups[0]
        epsilon = group["eps"] if "betas" in group else None
        still = []
        for name in list(self._before):
            parameter, rate = self._parameters[name], rates.get(name, 0.0)
            self._steps[name] += rate > 0
            if not torch.equal(parameter, self._before[name]):
                del self._before[name]
            elif self._steps[name] >= 2 and _should_move(parameter, rate, epsilon):
                still.append(name)
        if still:
            raise NotSupported(
                f"{_listed(still)} did not move in two optimiser steps.",
                "The method and this backbone do not fit together; please report the pair.",
            )


def _should_move(parameter: Tensor, rate: float, epsilon: float | None) -> bool:
    """Whether an update at this rate is large enough to be seen in float32; a dry one always is.

    Args:
        parameter: with its gradient.
        rate: the learning rate.
        epsilon: that of Adam, whose first updates are rate g / (|g| + epsilon); None for SGD.
    """
    gradient = parameter.grad
    largest = 0.0 if gradient is None else float(gradient.abs().max())
    if largest == 0.0:
        return True
    size = rate * largest / (1.0 if epsilon is None else largest + epsilon)
    return size > 4 * torch.finfo(parameter.dtype).eps * float(parameter.detach().abs().max())


def _listed(names: list[str], most: int = 8) -> str:
    """The names, the first few of them where there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
