"""Knowledge interaction: closed forms, references of torch, what each form is blind to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional as F

from gistcli.methods.interaction import INTERACTIONS, OF_SOFTMAX, SOFTENED

SYMMETRIC = ["bkld", "bernoulli", "mse", "cosine"]


def pair(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z, g = scale * torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    return z.float().requires_grad_(), g.float().requires_grad_()


def two_divergences(z: Tensor, g: Tensor, temperature: float) -> Tensor:
    """The published form, with two calls of kl_div."""
    p, q = F.log_softmax(z / temperature, dim=1), F.log_softmax(g / temperature, dim=1)
    forward = F.kl_div(q, p.exp(), reduction="batchmean")
    return forward + F.kl_div(p, q.exp(), reduction="batchmean")


@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
def test_bkld_has_value_and_gradients_of_the_two_divergences(temperature: float) -> None:
    z, g = pair()
    ours = INTERACTIONS["bkld"](z, g, temperature)
    theirs = two_divergences(z, g, temperature)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for mine, reference in zip(
        torch.autograd.grad(ours, (z, g)), torch.autograd.grad(theirs, (z, g)), strict=True
    ):
        assert torch.allclose(mine, reference, atol=1e-6)
        assert mine.abs().max() > 1e-4


def test_directions_are_named_by_whose_distribution_is_the_target() -> None:
    z, g = pair()
    p, q = Categorical(logits=z.double() / 2), Categorical(logits=g.double() / 2)
    found = {name: INTERACTIONS[name](z, g, 2.0).item() for name in OF_SOFTMAX}
    assert found["fkld"] == pytest.approx(kl_divergence(p, q).mean().item(), rel=1e-5)
    assert found["rkld"] == pytest.approx(kl_divergence(q, p).mean().item(), rel=1e-5)
    assert found["fkld"] != pytest.approx(found["rkld"], rel=1e-2)
    assert found["bkld"] == pytest.approx(found["fkld"] + found["rkld"], rel=1e-5)


def test_bernoulli_is_the_jeffreys_divergence_of_every_class_by_itself() -> None:
    z, g = pair()
    p, q = Bernoulli(logits=z.double() / 3), Bernoulli(logits=g.double() / 3)
    expected = (kl_divergence(p, q) + kl_divergence(q, p)).sum(1).mean().item()
    assert INTERACTIONS["bernoulli"](z, g, 3.0).item() == pytest.approx(expected, rel=1e-5)


def test_mse_and_cosine_on_numbers_that_a_reader_can_check() -> None:
    z, g = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 4.0], [2.0, 2.0]])
    assert INTERACTIONS["mse"](z, g, 3.0).item() == pytest.approx((9 + 16 + 1 + 1) / 4)
    assert INTERACTIONS["cosine"](z, g, 3.0).item() == pytest.approx((1 + 0) / 2)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_none_is_negative_and_equal_logits_are_as_close_as_can_be(name: str) -> None:
    for seed in range(20):
        z, g = pair(seed, scale=10.0)
        assert INTERACTIONS[name](z, g, 3.0).item() > 0
        same = INTERACTIONS[name](z, z.clone(), 3.0).item()
        assert same == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_forms_do_not_change_when_the_tokens_are_swapped(name: str) -> None:
    z, g = pair()
    assert INTERACTIONS[name](z, g, 3.0).item() == pytest.approx(
        INTERACTIONS[name](g, z, 3.0).item(), rel=1e-6
    )
    assert set(SYMMETRIC) == set(INTERACTIONS) - {"fkld", "rkld"}


def test_bkld_is_zero_for_equal_distributions_only() -> None:
    z, _ = pair()
    shifted = INTERACTIONS["bkld"](z, z + 4, 3.0).item()  # the same distribution
    assert shifted == pytest.approx(0, abs=1e-6)
    nudged = z.detach().clone()
    nudged[0, 0] += 0.1
    assert INTERACTIONS["bkld"](z, nudged, 3.0).item() > 1e-6
    assert INTERACTIONS["mse"](z, z + 4, 3.0).item() == pytest.approx(16)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_the_temperature_acts_where_it_is_said_to(name: str) -> None:
    z, g = pair()
    warm, hot = (INTERACTIONS[name](z, g, t).item() for t in (1.0, 10.0))
    assert (warm != hot) == (name in SOFTENED)


def test_without_t_squared_a_high_temperature_switches_the_interaction_off() -> None:
    z, g = pair(scale=0.1)
    low, high = (INTERACTIONS["bkld"](z, g, t).item() for t in (1.0, 10.0))
    assert low / high == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_a_mean_over_the_batch(name: str) -> None:
    z, g = pair()
    rows = [INTERACTIONS[name](z[i : i + 1], g[i : i + 1], 3.0).item() for i in range(len(z))]
    assert INTERACTIONS[name](z, g, 3.0).item() == pytest.approx(math.fsum(rows) / 7, rel=1e-5)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_logits_of_lower_precision_are_compared_in_float32(name: str) -> None:
    z, g = (t.detach().bfloat16() for t in pair())
    found = INTERACTIONS[name](z, g, 3.0)
    assert found.dtype == torch.float32
    assert found.item() == INTERACTIONS[name](z.float(), g.float(), 3.0).item()


@pytest.mark.parametrize("name", INTERACTIONS)
def test_extreme_logits_give_finite_values_and_gradients(name: str) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    g = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    value = INTERACTIONS[name](z, g, 1.0)
    gradients = torch.autograd.grad(value, (z, g))
    assert all(torch.isfinite(t).all() for t in (value, *gradients))
