"""A GIFT tuner on a small ViT with drop-path, and real digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.data import ImageSplit, Preprocess, load_split, open_catalog
from gistcli.methods.base import Tuner
from gistcli.methods.gift import Gift
from gistcli.recipe import DataSection


@pytest.fixture
def tuner() -> Tuner:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2,
        drop_path_rate=0.5,
    )  # fmt: skip
    backbone = ViT(model, Origin("tiny", "vit_tiny_patch16_224"))
    backbone.reset_head(10)
    tuner = Gift(rank=4).attach(backbone)
    for psi in tuner.psi.values():
        nn.init.normal_(psi, std=0.1)
    return tuner


@pytest.fixture(scope="session")
def digits() -> ImageSplit:
    catalog = open_catalog(DataSection(path="digits"), base=Path())
    preprocess = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
    return load_split(catalog, "val", preprocess, train=False, limit=50)
