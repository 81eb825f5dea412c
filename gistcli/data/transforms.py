"""From a decoded picture to pixels: timm's own evaluation transform up to 8 bits, then the rest.

What timm computes in one go is cut in two where it is exact: everything up to the 8-bit crop is
done once a picture and cached, and `Normalize` does (pixels / 255 - mean) / std on the device with
the operations and in the order of timm, so that the result is equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from gistcli.data.base import Preprocess

_DRAFT_MARGIN = 2.0
"""A JPEG decoded smaller keeps this many times the pixels that the resize asks for."""


@cache
def crop_transform(preprocess: Preprocess) -> Callable[[Image.Image], Tensor]:
    """The part of timm's evaluation transform that ends in uint8 pixels (C, H, W)."""
    from timm.data.transforms_factory import create_transform

    transform: Callable[[Image.Image], Tensor] = create_transform(
        **{**preprocess.to_config(), "input_size": (preprocess.channels, *preprocess.size)},
        is_training=False,
        normalize=False,
    )
    return transform


class Normalize:
    """uint8 (B, C, H, W) to float32 (pixels / 255 - mean) / std, where the pixels lie."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self.mean = torch.tensor(preprocess.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(preprocess.std, device=device).view(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)


def canvas(preprocess: Preprocess) -> Preprocess:
    """The larger picture that random crops are cut from: 8/7 of the input (256 for 224).

    It covers about what the evaluation crop sees, with the margin around it that a model with
    `crop_pct` 0.875 leaves.
    """
    height, width = (round(side * 8 / 7) for side in preprocess.size)
    return preprocess.resized((height, width), crop_pct=1.0)


def draft_size(preprocess: Preprocess) -> int:
    """The shorter side that a JPEG for training must keep when it is decoded smaller."""
    resized = max(math.floor(side / preprocess.crop_pct) for side in preprocess.size)
    return math.ceil(resized * _DRAFT_MARGIN)
