"""What a fused projection consists of, and which modules have an output to scale."""

from __future__ import annotations

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
        width = getattr(module, "nf", len(weight))
        skipped = path.endswith(bypassed or "\0")
        found.append(Output(path, kind, width, module, skipped, _offset(type(module))))
    return found


def _offset(kind: Any) -> float:
    """What a norm adds to its weight before it multiplies: 1 in Gemma's, whose weights start at 0.

    Read off a new one, since every family has a class of its own.
    """
    if not kind.__name__.endswith("RMSNorm") or kind is nn.RMSNorm:
        return 0.0
    with torch.device("cpu"):
        fresh: Any = kind(2)
    return 1.0 - float(fresh.weight.detach()[0])
