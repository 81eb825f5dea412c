"""What a fused projection consists of, and which modules have an output to scale."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gistcli.backbones.sites import Output, Site

SLICES = ("query", "key", "value")


def thirds(fused: Site) -> list[Site]:
    """Query, key and value as row slices of a fused map."""
    third = fused.d_out // 3
    return [
        replace(
            fused,
            name=f"{fused.name}[{part}]",
            role=part,
            rows=slice(i * third, (i + 1) * third),
        )
        for i, part in enumerate(SLICES)
    ]


def affine_outputs(
    model: nn.Module, paths: list[str], bypassed: tuple[str, ...] = ()
) -> list[Output]:
    """Outputs of those modules that have a weight (a norm may be an Identity).

    Args:
        model: the network.
        paths: modules in order.
        bypassed: endings of paths whose modules the network never calls.
    """
    found = []
    for path in paths:
        module = model.get_submodule(path)
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        kind = {2: "linear", 4: "embed"}.get(weight.ndim, "norm")
        # not the first dimension of GPT-2's Conv1D, nor of layers that keep codes
        width = int(getattr(module, "nf", 0) or getattr(module, "out_features", len(weight)))
        skipped = path.endswith(bypassed or "\0")
        found.append(Output(path, kind, width, module, skipped))
    return found


def weight_offset(norm: nn.Module) -> float:
    """What a norm adds to its weight before it multiplies: 1 in Gemma's and Nemotron's.

    Every family has a class of its own, so it is read off what a weight of zero leaves of numbers
    whose mean is 0 and whose mean square is 1. No hook runs, and no weight is looked at.
    """
    own = norm._parameters
    probe: Any = copy.copy(norm)
    probe._parameters = {n: None if p is None else torch.zeros(p.shape) for n, p in own.items()}
    x = torch.ones(1, 1, len(probe.weight))
    x[..., ::2] = -1
    return float(probe.forward(x).flatten()[-1].round())
