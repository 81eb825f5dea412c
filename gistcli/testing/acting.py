"""What the properties do with a tuner."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import Backbone
from gistcli.methods.base import Tuner

Batch = Mapping[str, Tensor]


def logits(network: Tuner | Backbone, batch: Batch) -> Tensor:
    """(B, K), as evaluation computes them."""
    step = network.step() if isinstance(network, Tuner) else torch.no_grad()
    with torch.no_grad(), step:
        found: Tensor = network(batch).logits
    return found


def disturb(tuner: Tuner, size: float = 0.1, seed: int = 3) -> None:
    """Move every trained tensor away from its start."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in tuner.state().items():
        noise = size * torch.randn(tensor.shape, generator=generator)
        moved[name] = tensor + noise.to(tensor)
    tuner.load_state(moved)


def gradients(tuner: Tuner, batch: Batch, pieces: int = 1) -> dict[str, Tensor]:
    """The gradients of the summed loss of one optimiser step, in so many micro-batches."""
    trained = tuner.trainable()
    count = len(batch["labels"]) // pieces
    with tuner.step():
        for start in range(0, len(batch["labels"]), count):
            piece = {key: value[start : start + count] for key, value in batch.items()}
            logits_BK = tuner(piece).logits
            F.cross_entropy(logits_BK, piece["labels"], reduction="sum").backward()
    found = {n: t.parameter.grad for n, t in trained.items() if t.parameter.grad is not None}
    for each in trained.values():
        each.parameter.grad = None
    return found


def train(tuner: Tuner, batch: Batch, steps: int = 3) -> None:
    """A few steps on one batch, the tuner's own terms included; tiny gradients move, too."""

    def criterion(logits_BK: Tensor) -> Tensor:
        return F.cross_entropy(logits_BK.float(), batch["labels"])

    parameters = [t.parameter for t in tuner.trainable().values()]
    optimiser = torch.optim.AdamW(parameters, lr=0.03, weight_decay=0.0)
    for _ in range(steps):
        with tuner.step():
            features = tuner(batch)
            own = tuner.auxiliary(features, batch, criterion, 1.0)
            loss = torch.stack([criterion(features.logits), *own.values()]).sum()
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
