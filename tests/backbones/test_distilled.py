"""DeiT distilled: a network with two class tokens and two heads."""

from __future__ import annotations

import copy

import torch

from gistcli.backbones.vit import ViT
from gistcli.testing.kinds import batch
from tests.backbones.kinds import ALL, logits


def test_a_distilled_network_averages_its_heads_in_training_too() -> None:
    backbone, pixels = ALL["DeiT distilled"].backbone(), batch()["pixels"][:3]
    assert isinstance(backbone, ViT)
    plain = copy.deepcopy(backbone.model)
    backbone.train()
    backbone.model.set_distilled_training(True)
    plain.train().set_distilled_training(True)
    with torch.no_grad():
        result = backbone({"pixels": pixels}).logits
        one, two = plain(pixels)
    assert not torch.allclose(one, two)
    assert torch.equal(result, torch.stack([one, two]).mean(0))


def test_the_head_alone_reads_both_tokens_side_by_side() -> None:
    backbone, pixels = ALL["DeiT distilled"].backbone(), batch()["pixels"][:3]
    with torch.no_grad():
        features = backbone({"pixels": pixels})
        assert features.pooled.shape == (3, 48)
        assert torch.equal(backbone.classify(features.pooled), logits(backbone, pixels))
        swapped = features.pooled.roll(24, dims=1)
        assert not torch.allclose(backbone.classify(swapped), features.logits, atol=1e-3)
