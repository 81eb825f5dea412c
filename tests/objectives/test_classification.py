"""The classification loss against its closed form, on a real tuner."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from gistcli.backbones import Features
from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.methods.base import Tuner
from gistcli.methods.gift import Gift
from gistcli.objectives import Classification


@pytest.fixture
def tuner() -> Tuner:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2
    )
    backbone = ViT(model, Origin("tiny", "vit_tiny_patch16_224"))
    backbone.reset_head(5)
    tuner = Gift(rank=4).attach(backbone)
    for psi in tuner.psi.values():
        nn.init.normal_(psi, std=0.1)
    return tuner.eval()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixels": torch.randn(7, 3, 16, 16, generator=generator),
        "labels": torch.tensor([0, 1, 2, 3, 4, 0, 1]),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_loss_is_the_mean_of_minus_log_p_under_smoothed_targets(
    tuner: Tuner, batch: dict[str, Tensor], smoothing: float
) -> None:
    losses = Classification(tuner, smoothing)(batch, 7)
    log_p = tuner(batch).logits.double().log_softmax(1)
    expected = 0.0
    for row, label in zip(log_p.tolist(), batch["labels"].tolist(), strict=True):
        targets = [smoothing / 5 + (1 - smoothing) * (k == label) for k in range(5)]
        expected -= sum(t * v for t, v in zip(targets, row, strict=True)) / 7
    assert losses.total.item() == pytest.approx(expected, rel=1e-6)
    assert losses.parts.keys() == {"classification"}
    assert not losses.parts["classification"].requires_grad


def test_an_untrained_guess_costs_the_logarithm_of_the_classes(
    tuner: Tuner, batch: dict[str, Tensor]
) -> None:
    nn.init.zeros_(tuner.backbone.model.head.weight)
    losses = Classification(tuner)(batch, 7)
    assert losses.total.item() == pytest.approx(math.log(5))
    assert float(losses.figures["accuracy"]) == pytest.approx(2 / 7)  # argmax of a tie is class 0


def gradients(task: Classification) -> dict[str, Tensor]:
    return {n: t.parameter.grad.clone() for n, t in task.tuner.trainable().items()}


def test_unequal_micro_batches_add_up_to_the_gradient_of_the_whole(
    tuner: Tuner, batch: dict[str, Tensor]
) -> None:
    task = Classification(tuner)
    task(batch, task.count(batch)).total.backward()
    whole = gradients(task)
    task.zero_grad()
    pieces = [{k: v[s] for k, v in batch.items()} for s in (slice(0, 5), slice(5, 7))]
    denominator = sum(task.count(p) for p in pieces)
    losses = [task(p, denominator) for p in pieces]
    for each in losses:
        each.total.backward()
    assert denominator == 7
    for name, gradient in gradients(task).items():
        torch.testing.assert_close(gradient, whole[name])
    sums = [sum(float(x.figures["accuracy"]) for x in losses)]
    assert sums == [pytest.approx(float(task(batch, 7).figures["accuracy"]))]


def test_terms_of_the_tuner_join_the_loss_normalised_like_it(
    tuner: Tuner, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def auxiliary(
        features: Features, batch: dict[str, Tensor], criterion: object, share: float
    ) -> object:
        twice = 2 * criterion(features.logits)  # type: ignore[operator]
        return {"twice": twice, "share": torch.tensor(share)}

    monkeypatch.setattr(tuner, "auxiliary", auxiliary)
    losses = Classification(tuner)(batch, 14)
    parts = {n: float(p) for n, p in losses.parts.items()}
    assert parts["twice"] == pytest.approx(2 * parts["classification"])
    assert parts["share"] == pytest.approx(len(batch["labels"]) / 14)
    total = 3 * parts["classification"] + parts["share"]
    assert losses.total.item() == pytest.approx(total)


def test_every_parameter_stands_in_the_module_tree_exactly_once(tuner: Tuner) -> None:
    task = Classification(tuner)
    found = [id(p) for p in task.parameters()]
    every = [id(p) for _, p in task.named_parameters(remove_duplicate=False)]
    assert sorted(found) == sorted(every)
    assert {id(t.parameter) for t in tuner.trainable().values()} <= set(found)
    assert {id(p) for p in tuner.backbone.model.parameters()} <= set(found)
    wanting = {id(p) for p in task.parameters() if p.requires_grad}
    assert wanting == {id(t.parameter) for t in tuner.trainable().values()}


def test_training_mode_reaches_the_network(tuner: Tuner) -> None:
    task = Classification(tuner)
    task.train()
    assert tuner.training
    assert tuner.backbone.model.blocks[0].training
