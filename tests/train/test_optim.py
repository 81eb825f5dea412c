"""Parameter groups, rates, and optimiser state by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gistcli.errors import UnknownName, WeightsError
from gistcli.methods.base import Trained
from gistcli.train import OptimPlan
from gistcli.train.optim import build_optimiser, load_optimiser_state, optimiser_state, set_rates


def trainable() -> dict[str, Trained]:
    torch.manual_seed(0)
    shapes = {"phi": (4, 2), "scale": (4,), "head.weight": (3, 4), "head.bias": (3,)}
    return {
        name: Trained(
            nn.Parameter(torch.randn(shape)),
            "head" if name.startswith("head") else "method",
            len(shape) > 1,
        )
        for name, shape in shapes.items()
    }


def test_groups_separate_head_from_method_and_decay_from_none() -> None:
    plan = OptimPlan(lr=1.0, head_lr=0.1, weight_decay=0.05, schedule="constant", warmup_ratio=0)
    optimiser = build_optimiser(trainable(), plan)
    rates = set_rates(optimiser, plan, 0, 10)
    found = {g["name"]: (g["names"], g["lr"], g["weight_decay"]) for g in optimiser.param_groups}
    assert found == {
        "method": (["phi"], 1.0, 0.05),
        "method/no_decay": (["scale"], 1.0, 0.0),
        "head": (["head.weight"], 0.1, 0.05),
        "head/no_decay": (["head.bias"], 0.1, 0.0),
    }
    assert rates == {"lr": 1.0, "head_lr": 0.1}


def test_the_rate_of_a_probe_is_that_of_its_head() -> None:
    head = {n: t for n, t in trainable().items() if t.group == "head"}
    plan = OptimPlan(lr=1.0, head_lr=0.1, schedule="linear", warmup_ratio=0)
    assert set_rates(build_optimiser(head, plan), plan, 5, 10) == {"lr": pytest.approx(0.05)}


def test_the_first_adamw_step_is_the_sign_of_the_gradient_times_the_rate_plus_decay() -> None:
    trained = trainable()
    before = trained["phi"].parameter.detach().clone()
    plan = OptimPlan(lr=0.01, weight_decay=0.1, schedule="constant", warmup_ratio=0)
    optimiser = build_optimiser(trained, plan)
    set_rates(optimiser, plan, 0, 10)
    gradient = torch.randn_like(before)
    for t in trained.values():
        t.parameter.grad = torch.ones_like(t.parameter)
    trained["phi"].parameter.grad = gradient
    optimiser.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient.sign()
    torch.testing.assert_close(trained["phi"].parameter.detach(), expected)


def test_beta2_says_how_long_adamw_remembers_squared_gradients() -> None:
    trained = trainable()
    optimiser = build_optimiser(trained, OptimPlan(beta2=0.9))
    for t in trained.values():
        t.parameter.grad = torch.full_like(t.parameter, 2.0)
    optimiser.step()
    state = optimiser_state(optimiser)
    torch.testing.assert_close(state["exp_avg_sq:phi"], torch.full((4, 2), 0.1 * 4))


def test_sgd_gathers_momentum() -> None:
    trained = {"phi": trainable()["phi"]}
    before = trained["phi"].parameter.detach().clone()
    plan = OptimPlan(name="sgd", lr=0.1, momentum=0.9, schedule="constant", warmup_ratio=0)
    optimiser = build_optimiser(trained, plan)
    for step in range(2):
        set_rates(optimiser, plan, step, 10)
        trained["phi"].parameter.grad = torch.ones_like(before)
        optimiser.step()
    torch.testing.assert_close(trained["phi"].parameter.detach(), before - 0.1 * (1 + 1.9))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_restored_optimiser_takes_the_same_steps_bit_for_bit(name: str) -> None:
    plan = OptimPlan(name=name, weight_decay=0.01)
    ours = trainable()
    optimiser = build_optimiser(ours, plan)

    def step(trained: dict[str, Trained], optimiser: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(number)
        for t in trained.values():
            t.parameter.grad = torch.randn_like(t.parameter)
        set_rates(optimiser, plan, number, 20)
        optimiser.step()

    for number in range(5):
        step(ours, optimiser, number)
    theirs = {
        n: Trained(nn.Parameter(t.parameter.detach().clone()), t.group, t.decay)
        for n, t in ours.items()
    }
    other = build_optimiser(theirs, plan)
    load_optimiser_state(other, {k: v.clone() for k, v in optimiser_state(optimiser).items()})
    for number in range(5, 10):
        step(ours, optimiser, number)
        step(theirs, other, number)
    assert all(torch.equal(ours[n].parameter, theirs[n].parameter) for n in ours)


def test_state_of_another_method_is_refused() -> None:
    optimiser = build_optimiser(trainable(), OptimPlan())
    with pytest.raises(WeightsError, match="holds 'lora_a'"):
        load_optimiser_state(optimiser, {"exp_avg:lora_a": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"lacks head\.bias, head\.weight"):
        load_optimiser_state(
            optimiser, {"exp_avg:phi": torch.zeros(4, 2), "exp_avg:scale": torch.zeros(4)}
        )


def test_parameters_without_a_gradient_have_no_state_to_lack() -> None:
    plan = OptimPlan()
    trained = trainable()
    optimiser = build_optimiser(trained, plan)
    for name, t in trained.items():
        if name != "scale":
            t.parameter.grad = torch.ones_like(t.parameter)
    set_rates(optimiser, plan, 0, 20)
    optimiser.step()
    state = optimiser_state(optimiser)
    with pytest.raises(WeightsError, match="lacks scale"):
        load_optimiser_state(build_optimiser(trained, plan), state)
    other = build_optimiser(trained, plan)
    load_optimiser_state(other, state, idle={"scale"})
    found = optimiser_state(other)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_an_unknown_optimiser_names_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="adam"):
        build_optimiser(trainable(), OptimPlan(name="adam"))
