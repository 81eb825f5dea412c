"""Attaching, switching off, detaching: what the backbone is before, meanwhile and after."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gistcli import registry
from gistcli.errors import NotSupported
from gistcli.methods.base import Tuner
from gistcli.methods.gift import Gift
from gistcli.methods.gist import GistTuner
from gistcli.methods.linear import Linear
from gistcli.testing.acting import Batch, disturb, logits, train
from gistcli.testing.cases import Case, facts
from gistcli.testing.refusals import REFUSED


def test_a_refused_pair_says_why_before_anything_is_trained(refused: Case) -> None:
    error = facts(refused).refusal
    assert isinstance(error, NotSupported), error
    assert error.message.count(" ") > 3
    assert error.hint
    if refused.configuration.name in registry.TABLES["methods"]:
        listed = REFUSED[refused.configuration.listed][refused.kind.name]
        assert listed in error.message


def test_refusing_leaves_the_backbone_as_it_was(refused: Case, batch: Batch) -> None:
    backbone = refused.kind.backbone()
    base = logits(backbone, batch)
    with pytest.raises(NotSupported):
        refused.method().attach(backbone)
    assert torch.equal(logits(backbone, batch), base)
    if backbone.head_names():
        assert torch.equal(logits(Linear().attach(backbone).eval(), batch), base)


def test_nothing_on_the_list_of_refused_pairs_works_by_now(case: Case) -> None:
    assert case.kind.name not in REFUSED.get(case.configuration.listed, {})


def test_attaching_changes_nothing_yet_unless_the_method_says_so(case: Case, batch: Batch) -> None:
    backbone = case.kind.backbone()
    base, keys = logits(backbone, batch), list(backbone.model.state_dict())
    torch.manual_seed(2)
    tuner = case.method().attach(backbone).eval()
    now = logits(tuner, batch)
    method = tuner.method
    if isinstance(tuner, GistTuner) and tuner.droppable():
        method = tuner.inner.method
    if method.starts_as_base():
        assert torch.allclose(now, base, atol=1e-6)
    else:
        assert torch.isfinite(now).all()
        assert not torch.allclose(now, base, atol=1e-6)
    assert list(backbone.model.state_dict()) == keys


def test_training_changes_the_output_and_detaching_takes_it_back(
    tuner: Tuner, batch: Batch
) -> None:
    backbone = tuner.backbone
    with tuner.disabled():
        base = logits(tuner, batch)
        weights = {n: t.clone() for n, t in backbone.model.state_dict().items()}
    train(tuner, batch)
    tuned = logits(tuner, batch)
    assert not torch.allclose(tuned, base, atol=1e-3)
    with tuner.disabled():
        assert torch.equal(logits(tuner, batch), base)
    assert torch.equal(logits(tuner, batch), tuned)
    tuner.detach()
    assert torch.equal(logits(backbone, batch), base)
    now = backbone.model.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[n], t) for n, t in weights.items())


@pytest.mark.needs("family")
def test_switched_off_inside_switched_off_stays_off(tuner: Tuner, batch: Batch) -> None:
    disturb(tuner)
    tuned = logits(tuner, batch)
    with tuner.disabled():
        base = logits(tuner, batch)
        tuner.switch.enabled = False
        assert torch.equal(logits(tuner, batch), base)
    assert torch.equal(logits(tuner, batch), tuned)
    assert not torch.allclose(tuned, base, atol=1e-3)


@pytest.mark.needs("family")
def test_two_tuners_on_one_backbone_switch_off_independently(case: Case, batch: Batch) -> None:
    backbone = case.kind.backbone()
    first = case.method().attach(backbone).eval()
    if backbone.head_names():
        with pytest.raises(ValueError, match="already trained"):
            case.method().attach(backbone)
    second = Gift(targets=("fc_in",), layers=(1,), rank=4).attach(backbone, head=False).eval()
    disturb(first)
    only_first = logits(first, batch)
    disturb(second)
    both = logits(first, batch)
    with second.disabled():
        assert torch.equal(logits(first, batch), only_first)
    with first.disabled():
        only_second = logits(first, batch)
    assert not torch.allclose(only_second, both)
    assert not torch.allclose(only_first, both)
    second.detach()
    assert torch.equal(logits(first, batch), only_first)


@pytest.mark.needs("seam")
def test_hooks_read_the_parameters_that_stand_there_now(
    case: Case, tuner: Tuner, batch: Batch
) -> None:
    disturb(tuner)
    before, moved = logits(tuner, batch), tuner.state()
    for name in tuner.trainable().keys() - tuner.idle():
        moved[name] = moved[name] + 0.1
    expected = case.attach()
    expected.load_state(moved)
    replaced: dict[int, nn.Parameter] = {}
    for module in (tuner, tuner.backbone):
        for child in module.modules():
            for name, parameter in list(child._parameters.items()):
                if parameter is not None and parameter.requires_grad:
                    new = replaced.setdefault(id(parameter), nn.Parameter(parameter + 0.1))
                    child._parameters[name] = new
    now = logits(tuner, batch)
    # a single captured tensor shows: its old values are no longer those of the state
    assert torch.allclose(now, logits(expected, batch), atol=1e-4)
    assert not torch.allclose(now, before, atol=1e-3)


def test_every_site_acts(tuner: Tuner, batch: Batch) -> None:
    logits(tuner, batch)
    assert {site.name for site in tuner.sites} <= tuner.fired()


@pytest.mark.needs("seam")
@pytest.mark.needs("gate")
def test_a_closed_gate_leaves_every_token_as_it_was(tuner: Tuner, batch: Batch) -> None:
    disturb(tuner)

    def tokens() -> Tensor:
        with torch.no_grad(), tuner.step():
            found: Tensor = tuner(batch).tokens
        return found

    opened = tokens()
    with tuner.disabled():
        base = tokens()
    total = tuner.backbone.layout.total
    tuner.switch.gate = torch.zeros(1, total, 1)
    assert torch.allclose(tokens(), base, atol=1e-6)
    tuner.switch.gate = torch.ones(1, total, 1)
    assert torch.allclose(tokens(), opened, atol=1e-4)
    if tuner.method.name != "linear":
        assert not torch.allclose(opened, base, atol=1e-3)


@pytest.mark.needs("family")
def test_one_image_gets_the_logits_that_it_gets_among_others(tuner: Tuner, batch: Batch) -> None:
    disturb(tuner)
    together = logits(tuner, batch)
    alone = logits(tuner, {key: value[:1] for key, value in batch.items()})
    assert torch.allclose(alone, together[:1], atol=1e-4)
    assert not torch.allclose(alone, together[1:2], atol=1e-3)


@pytest.mark.needs("family")
def test_what_is_put_back_has_followed_the_network_to_its_device(tuner: Tuner) -> None:
    network = tuner.backbone.model.to("meta")  # the only other device that every machine has
    tuner.to("meta")
    with tuner.disabled():
        assert all(p.is_meta for p in network.parameters())
    assert all(p.is_meta for p in network.parameters())
    assert all(t.parameter.is_meta for t in tuner.trainable().values())


@pytest.mark.needs("plain")
def test_a_tuner_is_not_copied(tuner: Tuner) -> None:
    with pytest.raises(TypeError, match="attach anew"):
        copy.deepcopy(tuner)
