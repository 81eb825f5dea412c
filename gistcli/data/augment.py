"""Augmentation of a batch of uint8 pixels, on the device, repeatable for every single picture.

All randomness comes from a hash of (seed, epoch, picture, draw), never from a generator with a
state: the same picture in the same epoch is changed in the same way whatever batch, worker, process
or device it passes through, which is what makes a resumed run equal an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gistcli.data.base import Preprocess

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ORDER = 0xFFFF_FFFF
"""The draw that shuffles: far from those that augment."""


def _mix(words: np.ndarray) -> np.ndarray:
    """Steele, Lea and Flood's SplitMix64 finaliser on uint64; wraps around by design."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hashed(seed: int, epoch: int, index: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """64 random bits for each (index, draw) pair, broadcast against each other."""
    state = np.zeros(1, dtype=np.uint64)
    for word in (seed, epoch):
        state = _mix(state + _GOLDEN + np.array([word % 2**64], dtype=np.uint64))
    for words in (index, draw):
        state = _mix(state + _GOLDEN + words.astype(np.uint64))
    return state


def uniforms(seed: int, epoch: int, index: np.ndarray, draws: int) -> np.ndarray:
    """float64 in [0, 1), (B, draws): the draws of each picture in an epoch."""
    bits = hashed(seed, epoch, index[:, None], np.arange(draws)[None, :])
    return (bits >> np.uint64(11)) * 2.0**-53


def shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of `count` positions, int64, that depends on (seed, epoch) only."""
    keys = hashed(seed, epoch, np.arange(count), np.array([_ORDER]))
    return np.argsort(keys, kind="stable")


def batch_indices(
    count: int,
    batch_size: int,
    *,
    seed: int | None,
    epoch: int = 0,
    start_batch: int = 0,
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
) -> list[np.ndarray]:
    """Positions (int64) of the examples of each batch of one pass, for one process.

    Args:
        count: examples in the split.
        batch_size: examples in a global batch; process `rank` of `world` gets every world-th of
            them, so that the last batch of a process may be shorter, even empty.
        seed: of the order; None keeps that of the split.
        epoch: number of the pass.
        start_batch: global batches to leave out at the beginning.
        rank: this process.
        world: the number of processes.
        drop_last: leave out a last global batch that is not full.
    """
    order = np.arange(count) if seed is None else shuffled(seed, epoch, count)
    total = count // batch_size if drop_last else -(-count // batch_size)
    return [
        order[b * batch_size : (b + 1) * batch_size][rank::world] for b in range(start_batch, total)
    ]


class Augmentation(Protocol):
    """Changes a batch of canvases into a batch of inputs."""

    draws: int
    """How many random numbers each picture takes."""

    def __call__(self, pixels: Tensor, u: np.ndarray) -> Tensor:
        """uint8 (B, C, H', W') and `u` (B, draws) to uint8 (B, C, H, W)."""


class FlipCrop:
    """A random crop of the input size out of the canvas, mirrored with probability 1/2."""

    draws = 3

    def __init__(self, preprocess: Preprocess) -> None:
        self.size = preprocess.size

    def __call__(self, pixels: Tensor, u: np.ndarray) -> Tensor:
        height, width = self.size
        room = np.array([pixels.shape[-2] - height, pixels.shape[-1] - width])
        corners = np.floor(u[:, :2] * (room + 1)).astype(int)
        crops = [
            picture[:, top : top + height, left : left + width]
            for picture, (top, left) in zip(pixels, corners, strict=True)
        ]
        if not crops:
            return pixels.new_empty((0, pixels.shape[1], height, width))
        batch = torch.stack(crops)
        mirrored = torch.from_numpy(np.flatnonzero(u[:, 2] < 0.5)).to(batch.device)
        batch[mirrored] = batch[mirrored].flip(-1)
        return batch


class RandAugment:
    """`FlipCrop`, then two operations of strength 9 of 30 out of fourteen (arXiv 1909.13719)."""

    operations = 2
    strength = 9 / 30
    draws = FlipCrop.draws + 2 * operations

    def __init__(self, preprocess: Preprocess) -> None:
        self.crop = FlipCrop(preprocess)
        self.fill = [255 * m for m in preprocess.mean]
        self.table = _operations(self.strength, self.fill)

    def __call__(self, pixels: Tensor, u: np.ndarray) -> Tensor:
        batch = self.crop(pixels, u[:, : FlipCrop.draws])
        for picture, choices in zip(batch, u[:, FlipCrop.draws :], strict=True):
            changed = picture
            for which, sign in choices.reshape(-1, 2):
                operation = self.table[int(which * len(self.table))]
                changed = operation(changed, 1.0 if sign < 0.5 else -1.0)
            picture.copy_(changed)
        return batch


def _operations(m: float, fill: Sequence[float]) -> list[Callable[[Tensor, float], Tensor]]:
    """The fourteen operations at strength `m` in [0, 1]; each takes a picture and a sign."""
    import torchvision.transforms.v2.functional as tv

    def moved(
        x: Tensor, angle: float = 0, at: Sequence[float] = (0, 0), shear: Sequence[float] = (0, 0)
    ) -> Tensor:
        return tv.affine(
            x,
            angle=angle,
            translate=list(at),
            scale=1.0,
            shear=list(shear),
            interpolation=tv.InterpolationMode.BILINEAR,
            fill=list(fill),
        )

    lean = math.degrees(math.atan(0.3 * m))
    shift = 0.45 * m
    return [
        lambda x, s: x,
        lambda x, s: moved(x, shear=(s * lean, 0)),
        lambda x, s: moved(x, shear=(0, s * lean)),
        lambda x, s: moved(x, at=(round(s * shift * x.shape[-1]), 0)),
        lambda x, s: moved(x, at=(0, round(s * shift * x.shape[-2]))),
        lambda x, s: moved(x, angle=s * 30 * m),
        lambda x, s: tv.adjust_brightness(x, 1 + s * 0.9 * m),
        lambda x, s: tv.adjust_saturation(x, 1 + s * 0.9 * m),
        lambda x, s: tv.adjust_contrast(x, 1 + s * 0.9 * m),
        lambda x, s: tv.adjust_sharpness(x, 1 + s * 0.9 * m),
        lambda x, s: tv.posterize(x, 8 - round(4 * m)),
        lambda x, s: tv.solarize(x, 255 * (1 - m)),
        lambda x, s: tv.autocontrast(x),
        lambda x, s: tv.equalize(x),
    ]


def build(name: str, preprocess: Preprocess) -> Augmentation | None:
    """The augmentation of a recipe's `data.augment`: none, flip-crop or randaugment."""
    kinds: dict[str, type[FlipCrop] | type[RandAugment]] = {
        "flip-crop": FlipCrop,
        "randaugment": RandAugment,
    }
    return None if name == "none" else kinds[name](preprocess)
