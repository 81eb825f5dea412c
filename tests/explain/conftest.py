"""Small tuned ViTs with random weights, and maps written by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch

from gistcli.backbones import Backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.explain.clusters import ClusterMaps
from gistcli.methods.base import Tuner
from gistcli.methods.gift import Gift

MakeTuner = Callable[..., Tuner]
MakeMaps = Callable[..., ClusterMaps]


def backbone(**options: object) -> Backbone:
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**arguments, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return ViT(model, Origin("tiny", "vit_tiny_patch16_224")).eval()


@pytest.fixture
def make_tuner() -> MakeTuner:
    """A tiny ViT with GIFT on it, phi and psi both away from their start."""

    def make(targets: tuple[str, ...] = ("attn_out",), **options: object) -> Tuner:
        tuner = Gift(rank=4, targets=list(targets)).attach(backbone(**options))
        torch.manual_seed(1)
        for trained in tuner.trainable().values():
            torch.nn.init.normal_(trained.parameter, std=0.2)
        return tuner

    return make


@pytest.fixture
def make_maps() -> MakeMaps:
    """ClusterMaps around an array (B, L, M, h, w), by default of noise."""

    def make(
        maps: np.ndarray | None = None,
        *,
        shape: tuple[int, ...] = (2, 12, 4, 14, 14),
        layers: list[int] | None = None,
        depth: int = 12,
    ) -> ClusterMaps:
        if maps is None:
            maps = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        layers = list(range(maps.shape[1])) if layers is None else layers
        names = [f"blocks.{n}.attn.proj" for n in layers]
        return ClusterMaps(maps, layers, names, depth, np.zeros((len(maps), 5), np.float32))

    return make
