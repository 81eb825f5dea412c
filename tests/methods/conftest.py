"""A two-block ViT with random weights for the method tests."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from gistcli.backbones import Backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT


@pytest.fixture
def tiny() -> Backbone:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    backbone = ViT(model, Origin("tiny", "vit_tiny_patch16_224")).eval()
    backbone.reset_head(5)
    return backbone


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixels": torch.randn(6, 3, 32, 32, generator=generator),
        "labels": torch.tensor([0, 1, 2, 3, 4, 0]),
    }
