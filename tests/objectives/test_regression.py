"""The squared error against its closed form, on a real tuner."""

from __future__ import annotations

import pytest
import timm
import torch

from gistcli import registry
from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.methods.lora import Lora
from gistcli.objectives import Regression


def task() -> Regression:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2
    )
    backbone = ViT(model, Origin("tiny", "vit_tiny_patch16_224"))
    backbone.reset_head(1)
    return Regression(Lora(rank=2).attach(backbone).eval())


def test_the_loss_is_the_mean_squared_error_over_the_window() -> None:
    regression = task()
    torch.manual_seed(1)
    batch = {"pixels": torch.randn(3, 3, 16, 16), "labels": torch.tensor([0.5, 4.75, 2.0])}
    outputs = regression.tuner(batch).logits[:, 0].tolist()
    errors = [(z - y) ** 2 for z, y in zip(outputs, batch["labels"].tolist(), strict=True)]
    losses = regression(batch, 6)
    assert regression.count(batch) == 3
    assert losses.total.item() == pytest.approx(sum(errors) / 6, rel=1e-6)
    assert losses.parts.keys() == {"regression"}
    pieces = [{k: v[s] for k, v in batch.items()} for s in (slice(0, 1), slice(1, 3))]
    parts = [regression(p, 6).total.item() for p in pieces]
    assert sum(parts) == pytest.approx(losses.total.item(), rel=1e-6)


def test_it_is_in_the_table() -> None:
    assert registry.resolve("objectives", "regression") is Regression
