"""Which of the many maps to show first, and with which sign.

The rule was found on photos with one object in the middle (ViT-Ti, GIFT of rank 16 on the
attention output): of all clusters in the middle half of the layers, take the maps that set the
centre against the border most clearly and fall most cleanly into two levels. It looks at the map
alone, knows neither class nor object, and would choose handsome maps of a random phi as well: a
high score is no evidence of what was learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistcli.explain.clusters import ClusterMaps

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pick:
    """One chosen map of one image.

    Attributes:
        site: position on the L axis of the maps; layer: its block number.
        cluster: from 0.
        sign: 1, or -1 where the map answers negatively to the middle of the picture.
        score: contrast of centre and border, in standard deviations, times squared separability.
    """

    site: int
    layer: int
    cluster: int
    sign: int
    score: float


def standardise(maps: Floats) -> Floats:
    """Every map (..., h, w) with mean 0 and deviation 1; a constant one becomes 0, not NaN."""
    exact = maps.astype(np.float64)
    centred = exact - exact.mean(axis=(-2, -1), keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=(-2, -1), keepdims=True))
    # what float32 rounding leaves of a constant map is no structure
    flat = deviation <= 1e-6 * np.abs(exact).max(axis=(-2, -1), keepdims=True)
    return (centred / np.where(flat, np.inf, deviation)).astype(np.float32)


def contrast(maps: Floats) -> Floats:
    """Mean of the centre minus mean of the border ring, (...) for maps (..., h, w).

    The centre is the inner 6 x 8 of 14 x 14 patches and the ring one patch wide; other grids in
    proportion.
    """
    height, width = maps.shape[-2:]
    top = min(round(height * 4 / 14), (height - 1) // 2)
    left = min(round(width * 3 / 14), (width - 1) // 2)
    ring_h, ring_w = max(1, round(height / 14)), max(1, round(width / 14))
    ring = np.ones((height, width), dtype=bool)
    ring[ring_h:-ring_h, ring_w:-ring_w] = False
    centre = maps[..., top : height - top, left : width - left].mean(axis=(-2, -1))
    difference: Floats = centre - maps[..., ring].mean(axis=-1)
    return difference


def separability(maps: Floats) -> Floats:
    """Otsu's criterion (...) of maps (..., h, w): the greatest share, from 0 to 1, of the variance
    that lies between the two sides of a threshold."""
    values = np.sort(standardise(maps).reshape(*maps.shape[:-2], -1).astype(np.float64), axis=-1)
    n = values.shape[-1]
    if n < 2:
        return np.zeros(maps.shape[:-2], dtype=np.float32)
    below = np.cumsum(values, axis=-1)[..., :-1] / n  # mean is 0, so above = -below
    share = np.arange(1, n) / n
    between: Floats = (below**2 / (share * (1 - share))).max(axis=-1).astype(np.float32)
    return between


def judge(maps: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Sign and score (...) of every map (..., h, w); a constant map has sign 1 and score 0."""
    difference = contrast(standardise(maps))
    sign = np.where(difference < 0, -1, 1).astype(np.int8)
    return sign, np.abs(difference) * separability(maps) ** 2


def middle_layers(depth: int) -> range:
    """Layers 3 to 8 of 12, in proportion for other depths."""
    first = round(depth / 4)
    return range(first, max(first + 1, round(depth * 3 / 4)))


def choose(maps: ClusterMaps, count: int = 3) -> list[list[Pick]]:
    """The `count` best maps of every image, best first, from the middle layers.

    Where no tuned site lies in the middle layers, all are looked at.
    """
    middle = middle_layers(maps.depth)
    sites = [i for i, layer in enumerate(maps.layers) if layer in middle]
    sites = sites or list(range(len(maps.layers)))
    return [_best(image[sites], sites, maps.layers, count) for image in maps.maps]


def _best(maps_LMhw: Floats, sites: list[int], layers: list[int], count: int) -> list[Pick]:
    sign, score = judge(maps_LMhw)
    order = np.argsort(-score, axis=None, kind="stable")[:count]
    picks = []
    for row, cluster in zip(*np.unravel_index(order, score.shape), strict=True):
        at = (int(row), int(cluster))
        site = sites[at[0]]
        picks.append(Pick(site, layers[site], at[1], int(sign[at]), float(score[at])))
    return picks
