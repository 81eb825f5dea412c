"""Where CLS and GIST look: the attention of both to the patches, and how far they agree.

The maps are the weights by which a block mixes the patches' values into a token, as the network
itself computes them. They say what the token gathers in that block, not what the decision rests
on: values differ in size, later blocks mix what earlier ones have mixed, and large weights on a few
patches of the background are a habit of plain ViTs. Nor does a high overlap show what the token has
learnt: on 100 photos of 20 classes (ViT-Ti, GIFT with a gist token, 60 steps, one seed) it was 0.70
over all blocks, and 0.67 to 0.74 with three random tokens put in its place. Shape suffixes:
B = images, S = tokens that look, L = blocks, H = heads, K = classes, h and w = rows and columns of
patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistcli.backbones.attending import watch_attention
from gistcli.errors import NotSupported, WeightsError
from gistcli.evaluate.classify import evaluation_mode
from gistcli.methods.base import Tuner
from gistcli.methods.interaction import bkld

Floats = NDArray[np.float32]

CHUNK = 4
"""Images in one forward pass: the weights of one block hold H T^2 numbers an image."""
LABELS = {"cls": "CLS", "gist": "GIST", "prompts": "prompts"}


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention from some tokens to the patches.

    Attributes:
        maps: (B, S, L, H, h, w) float32. A slot of several tokens (two class tokens of a distilled
            network, a longer gist token) is their mean. What a token gives to others than patches
            is left out, so that a map sums to less than 1. In differential attention weights can be
            negative.
        slots: name of each of the S slots, `cls` first.
        layers: block number of each of the L blocks.
        logits: (B, K) float32, what the network predicts.
        gist_logits: (B, K) float32, read out from the other slot than `cls`; None without one.
    """

    maps: Floats
    slots: list[str]
    layers: list[int]
    logits: Floats
    gist_logits: Floats | None

    @property
    def mean(self) -> Floats:
        """(B, S, L, h, w), the mean over the heads."""
        mean: Floats = self.maps.mean(axis=3, dtype=np.float32)
        return mean

    @property
    def patch_share(self) -> Floats:
        """(B, S, L), how much of a token's attention goes to the patches, over all heads."""
        share: Floats = self.mean.sum(axis=(-2, -1), dtype=np.float32)
        return share

    @property
    def overlap(self) -> Floats | None:
        """(B, L), see `overlap`, of the means over the heads; None for a single slot."""
        return overlap(self.mean[:, 0], self.mean[:, 1]) if len(self.slots) > 1 else None

    @property
    def chance(self) -> Floats | None:
        """(L,) mean overlap of the second slot with the first one's map of the next image, as what
        place alone explains; None for a single slot or image."""
        if len(self.slots) < 2 or len(self.maps) < 2:
            return None
        shuffled = overlap(np.roll(self.mean[:, 0], -1, axis=0), self.mean[:, 1])
        return shuffled.mean(axis=0, dtype=np.float32)

    def jeffreys(self, temperature: float) -> Floats | None:
        """(B,) Jeffreys divergence of softmax(z / T) and softmax(g / T) in nats, an image each."""
        if self.gist_logits is None:
            return None
        pairs = zip(torch.from_numpy(self.logits), torch.from_numpy(self.gist_logits), strict=True)
        values = [float(bkld(z[None], g[None], temperature)) for z, g in pairs]
        return np.array(values, dtype=np.float32)


def overlap(first: Floats, second: Floats) -> Floats:
    """Mass that two maps (..., h, w) have in common (...): 1 where they are equal, 0 where apart.

    sum_i min(p_i, q_i) with p and q the positive parts of the maps, each divided by its sum; that
    is 1 minus their total variation distance. A map without a positive part overlaps with none.
    """
    shared = np.minimum(_distribution(first), _distribution(second)).sum(axis=(-2, -1))
    return shared.astype(np.float32)


def _distribution(map_hw: Floats) -> Floats:
    positive = np.maximum(map_hw, 0)
    total = positive.sum(axis=(-2, -1), keepdims=True)
    return (positive / np.where(total > 0, total, 1)).astype(np.float32)


def attention_maps(
    tuner: Tuner, pixels: Tensor, layers: Sequence[int] | None = None, other: str = "gist"
) -> AttentionMaps:
    """Where CLS and the gist token look in some images, with everything that the tuner changes.

    Where a tuner runs the network twice (TOAST), it is the second pass, which gives the logits.

    Args:
        tuner: attached, with its trained state.
        pixels: (B, C, H, W), prepared as for training; grids need not be square.
        layers: block numbers from 0, negative ones from the end; None means all.
        other: the slot that stands beside `cls`: gist, or prompts where these are read out.

    Raises:
        NotSupported: attention within windows, or neither a class token nor the other slot.
        Refused: a layer that does not exist.
        WeightsError: maps that are not finite.
    """
    numbers = tuner.backbone.layer_numbers("all" if layers is None else layers)
    with evaluation_mode(tuner, tuner.backbone), torch.no_grad(), tuner.step():
        chunks = [_look(tuner, chunk, numbers, other) for chunk in pixels.split(CHUNK)]
    maps, logits = torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])
    if not (torch.isfinite(maps).all() and torch.isfinite(logits).all()):
        raise WeightsError(
            f"The attention of {tuner.backbone.architecture} is not finite.",
            "The trained weights hold NaN or infinity: use an earlier checkpoint.",
        )
    slots = _slots(tuner, other)
    own, read_out = logits[:, 0].numpy(), logits[:, 1].numpy() if other in slots else None
    return AttentionMaps(maps.numpy(), slots, numbers, own, read_out)


def _slots(tuner: Tuner, other: str) -> list[str]:
    """Of the forward pass that is running, or was last."""
    layout = tuner.backbone.layout
    slots = [slot for slot in ("cls", other) if layout.lengths.get(slot, 0)]
    if not slots:
        raise NotSupported(
            f"{tuner.backbone.architecture} has no class token, and the run no gist token: nothing "
            "in the sequence stands for the whole picture.",
            "Train with --gist, or choose a network with a class token.",
        )
    return slots


def _look(tuner: Tuner, pixels: Tensor, layers: list[int], other: str) -> tuple[Tensor, Tensor]:
    """(B, S, L, H, h, w), and logits (B, 1 or 2, K), of one chunk; float32 on the CPU."""
    rows: dict[int, Tensor] = {}

    def see(layer: int, a_BHTT: Tensor) -> None:
        layout = tuner.backbone.layout
        to_patches = a_BHTT[..., layout.patches]
        looks = [to_patches[:, :, layout.span(s)].mean(dim=2) for s in _slots(tuner, other)]
        rows[layer] = torch.stack(looks, dim=1).float().cpu()

    reference = next(tuner.backbone.model.parameters())
    with watch_attention(tuner.backbone, see, layers):
        features = tuner({"pixels": pixels.to(reference)})
    maps = torch.stack([rows[n] for n in layers], dim=2).unflatten(-1, features.layout.grid)
    logits = [features.logits]
    if other in _slots(tuner, other):
        logits.append(tuner.backbone.read_out(features, other))
    return maps, torch.stack(logits, dim=1).float().cpu()
