"""What a fused projection consists of, and which modules have an output to scale."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from gistcli.backbones.sites import Output, Site

SLICES = ("query", "key", "value")


def thirds(fused: Site) -> list[Site]:
    """Query, key and value as row slices of a fused map."""
    third = fused.module.out_features // 3
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
        found.append(Output(path, kind, len(weight), module, path.endswith(bypassed or "\0")))
    return found
