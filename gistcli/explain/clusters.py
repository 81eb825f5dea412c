"""Cluster maps: how strongly every patch of a picture answers to every cluster of every site.

A tuned site writes its update into the columns of C = W phi (d_out, M). Each column is a soft
cluster of tokens, and the map of a site is y C, with y the tuned site's own output (bias
included), at the patch tokens only. Where a network coarsens its grid, the maps of the later stages
are resampled bilinearly to the finest grid among the chosen sites. Shape suffixes: B = images,
O = d_out, M = clusters, L = sites, h and w = rows and columns of patches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones.images import require_images
from gistcli.backbones.sites import Site, within_block
from gistcli.errors import NotSupported, UnknownName, WeightsError
from gistcli.evaluate.classify import evaluation_mode
from gistcli.methods.base import Tuner

CHUNK = 16
"""Images in one forward pass: the outputs of all sites are held at once."""


@dataclass(frozen=True, eq=False)
class ClusterMaps:
    """Raw, signed maps of some images.

    Attributes:
        maps: (B, L, M, h, w) float32, not scaled, in the units of y C, on one grid.
        layers: block number of each of the L sites; one block can have several sites.
        names: name of each of the L sites.
        depth: number of blocks of the network.
        logits: (B, K) float32, of the same forward pass.
    """

    maps: NDArray[np.float32]
    layers: list[int]
    names: list[str]
    depth: int
    logits: NDArray[np.float32]

    @property
    def clusters(self) -> int:
        """M, the number of clusters of every site."""
        return int(self.maps.shape[2])

    def label(self, site: int) -> str:
        """`layer 5`, with what stands behind the block's number where a block has several sites."""
        layer, name = self.layers[site], self.names[site]
        if Counter(self.layers)[layer] == 1:
            return f"layer {layer}"
        return f"layer {layer} {within_block(name)}"

    def sites_of(self, layers: Sequence[int] | None) -> list[int]:
        """Positions on the L axis of the sites in some layers; None means all.

        Raises:
            UnknownName: a layer without maps, with those that have some.
        """
        chosen = _layer_numbers(layers, self.layers, self.depth)
        return [i for i, layer in enumerate(self.layers) if layer in chosen]

    def clusters_of(self, clusters: Sequence[int] | None) -> list[int]:
        """Cluster numbers, sorted, without duplicates; None means all.

        Raises:
            UnknownName: a number outside 0 to M - 1.
        """
        known = range(self.clusters)
        if clusters is None:
            return list(known)
        unknown = [n for n in clusters if n not in known]
        if unknown or not clusters:
            raise _unknown("cluster", unknown, known)
        return sorted(set(clusters))


def cluster_maps(tuner: Tuner, pixels: Tensor, layers: Sequence[int] | None = None) -> ClusterMaps:
    """The maps y C of some images at the tuned sites, on the finest grid of those sites.

    Args:
        tuner: attached, with its trained state.
        pixels: (B, C, H, W), prepared as for training; grids need not be square.
        layers: block numbers from 0, negative ones from the end; None means all tuned ones.

    Raises:
        NotSupported: the method has no clusters, sites with different numbers of them, or a
            network without a grid of patches.
        UnknownName: a layer that has no tuned site.
        WeightsError: maps that are not finite.
    """
    if not tuner.method.capabilities().clusters:
        raise NotSupported(
            f"{tuner.method.name} has no clusters to show.",
            "`gist list methods` says which methods have them; --tokens shows where CLS looks.",
        )
    depth = tuner.backbone.depth
    chosen = _layer_numbers(layers, [s.layer for s in tuner.sites], depth)
    sites = [s for s in tuner.sites if s.layer in chosen]
    with evaluation_mode(tuner, tuner.backbone), torch.no_grad(), tuner.step():
        columns = [tuner.clusters(site).float() for site in sites]
        if len({c.shape[1] for c in columns}) > 1:
            raise NotSupported(
                "The tuned sites have different numbers of clusters.", "Choose one layer at a time."
            )
        chunks = [_maps_of(tuner, chunk, sites, columns) for chunk in pixels.split(CHUNK)]
    maps = torch.cat([m for m, _ in chunks])
    if not torch.isfinite(maps).all():
        raise WeightsError(
            f"The cluster maps of {tuner.backbone.architecture} are not finite.",
            "The trained weights hold NaN or infinity: use an earlier checkpoint.",
        )
    logits = torch.cat([logits for _, logits in chunks])
    names = [s.name for s in sites]
    return ClusterMaps(maps.numpy(), [s.layer for s in sites], names, depth, logits.numpy())


def _maps_of(
    tuner: Tuner, pixels: Tensor, sites: list[Site], columns: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """(B, L, M, h, w) and logits (B, K) of one chunk, float32 on the CPU."""
    network = require_images(tuner.backbone, "A cluster map")
    reference = next(network.model.parameters())
    with network.capture(sites) as seen:
        features = tuner({"pixels": pixels.to(reference)})
    maps = []
    for site, c_OM in zip(sites, columns, strict=True):
        y_BhwO = network.patch_map(site, seen[site.name]).float()
        maps.append((y_BhwO @ c_OM).movedim(-1, 1))
    return torch.stack(_on_one_grid(maps), dim=1).cpu(), features.logits.float().cpu()


def _on_one_grid(maps: list[Tensor]) -> list[Tensor]:
    """Maps (B, M, h, w) on the finest grid among them; coarser ones are resampled bilinearly."""
    finest = max((tuple(m.shape[-2:]) for m in maps), key=math.prod)
    return [
        m if tuple(m.shape[-2:]) == finest else F.interpolate(m, finest, mode="bilinear")
        for m in maps
    ]


def _layer_numbers(layers: Sequence[int] | None, tuned: Sequence[int], depth: int) -> set[int]:
    """The asked layers as numbers from 0; all of `tuned` where none is asked."""
    if layers is None:
        return set(tuned)
    unknown = [n for n in layers if (n if n >= 0 else n + depth) not in tuned]
    if unknown or not layers:
        raise _unknown("layer", unknown, sorted(set(tuned)))
    return {n if n >= 0 else n + depth for n in layers}


def _unknown(kind: str, asked: Sequence[int], known: Sequence[int]) -> UnknownName:
    numbers = (
        f"{kind}s {', '.join(map(str, asked))} have"
        if len(asked) != 1
        else (f"{kind} {asked[0]} has")
    )
    whole = list(known) == list(range(known[0], known[-1] + 1))
    text = f"{known[0]} to {known[-1]}" if whole else ", ".join(map(str, known))
    what = f"The {numbers} no map." if asked else f"No {kind} is named."
    return UnknownName(what, f"Known {kind}s: {text} (counted from 0).")
