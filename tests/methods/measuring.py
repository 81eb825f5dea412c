"""What the tests of the methods measure alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import open_backbone
from gistcli.methods.base import Method, Trained, Tuner


def on_vit_b_16(method: Method) -> list[Trained]:
    """What a method trains on ViT-B/16, the head apart."""
    backbone = open_backbone("vit_base_patch16_224", meta=True)
    backbone.reset_head(10)
    trained = method.attach(backbone).trainable().values()
    return [t for t in trained if t.group == "method"]


def count_on_vit_b_16(method: Method) -> int:
    """Its parameters."""
    return sum(t.parameter.numel() for t in on_vit_b_16(method))


def require_movement(tuner: Tuner, batch: Mapping[str, Tensor]) -> None:
    """Two steps give every trained tensor a gradient, and move it."""
    trained = {n: t.parameter for n, t in tuner.trainable().items()}
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimiser = torch.optim.Adam(trained.values(), lr=0.01)  # gradients differ by magnitudes
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(tuner(batch).logits, batch["labels"]).backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    assert not any(torch.equal(p, before[n]) for n, p in trained.items())
