"""A two-block ViT with random weights, in every pooling and prefix that the family has."""

from __future__ import annotations

import pytest
import timm
import torch

from gistcli.backbones import Backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT

KINDS = {
    "class token": {},
    "registers": {"reg_tokens": 4},
    "average pool": {"global_pool": "avg"},
    "map pool": {"global_pool": "map", "class_token": False},
    "pre-norm": {"pre_norm": True},
    "no position for prefix": {"no_embed_class": True, "reg_tokens": 2},
}


def build(**options: object) -> Backbone:
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**arguments, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return ViT(model, Origin("tiny", "vit_tiny_patch16_224")).eval()


@pytest.fixture(params=KINDS)
def tiny(request: pytest.FixtureRequest) -> Backbone:
    return build(**KINDS[request.param])


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
