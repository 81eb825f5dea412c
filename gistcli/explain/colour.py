"""From a map to colours: alone, and laid over the photo."""

from __future__ import annotations

from functools import cache

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

COLOURS = "inferno"
"""Perceptually uniform: equal steps of a map are equal steps to the eye."""
PERCENTILES = (2.0, 98.0)
"""Of a map's own patches: black and full colour. A few outlying patches do not set the scale."""

_VISIBLE, _FULL = 0.15, 0.75  # strengths at which the colour begins to cover, and covers most
_COVER = 0.82
_DIM = 0.5  # of the photo where the map is weak
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def strength(map_hw: Floats) -> Floats:
    """A map (h, w) from 0, its weakest patches, to 1, its strongest; 0 where it is constant."""
    low, high = np.percentile(map_hw, PERCENTILES)
    if not high - low > 1e-6 * np.abs(map_hw).max():
        return np.zeros_like(map_hw, dtype=np.float32)
    scaled: Floats = np.clip((map_hw - low) / (high - low), 0, 1).astype(np.float32)
    return scaled


def upsampled(strength_hw: Floats, size: tuple[int, int]) -> Floats:
    """Bilinear, pixel centres aligned: (height, width) of `size` = (width, height)."""
    image = Image.fromarray(np.ascontiguousarray(strength_hw, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def heat(strength_hw: Floats) -> Bytes:
    """(h, w, 3) colours of strengths in [0, 1]."""
    index = (np.clip(strength_hw, 0, 1) * 255).round().astype(np.uint8)
    return _table()[index]


def overlay(photo: Bytes, strength_hw: Floats) -> Bytes:
    """A photo (H, W, 3) with a map over it: dim where it is weak, in heat colours where it is
    strong, and with the photo's own light and shade everywhere."""
    height, width = photo.shape[:2]
    level = upsampled(strength_hw, (width, height))[..., None]
    picture = photo.astype(np.float32) / 255
    luma = (picture @ _LUMA)[..., None]
    dimmed = _DIM * (0.6 * picture + 0.4 * luma)
    # the darkest colours would look like the dimmed photo
    tint = heat(0.12 + 0.8 * level[..., 0]).astype(np.float32) / 255 * (0.6 + 0.7 * luma)
    ramp = np.clip((level - _VISIBLE) / (_FULL - _VISIBLE), 0, 1)
    cover = _COVER * ramp**2 * (3 - 2 * ramp)
    mixed = dimmed * (1 - cover) + tint * cover
    return (np.clip(mixed, 0, 1) * 255).round().astype(np.uint8)


@cache
def _table() -> Bytes:
    table: Bytes = matplotlib.colormaps[COLOURS](np.arange(256), bytes=True)[:, :3]
    return table
