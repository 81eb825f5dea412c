"""What should train and does not is found in the first two steps."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

from gistcli.errors import NotSupported
from gistcli.methods.base import Trained
from gistcli.train import OptimPlan, Plan
from gistcli.train.guards import Movement, require_gradients
from gistcli.train.optim import build_optimiser, set_rates


def trained(**values: torch.Tensor) -> dict[str, Trained]:
    return {n: Trained(nn.Parameter(v), "method", True) for n, v in values.items()}


def test_a_site_that_never_fires_stops_the_first_step(lab: ModuleType) -> None:
    task = lab.objective()
    block = task.model.blocks[1]
    block.attn.forward = lambda x, **_: x  # a family that never calls the layer `attn.proj`
    with pytest.raises(NotSupported, match=r"blocks\.1\.attn\.proj did not act"):
        lab.train(task, lab.digits("train"))


def test_a_parameter_out_of_reach_stops_the_first_step(lab: ModuleType) -> None:
    task = lab.objective()
    task.tuner.register_parameter("forgotten", nn.Parameter(torch.ones(2)))
    with pytest.raises(NotSupported, match="forgotten got no gradient"):
        lab.train(task, lab.digits("train"))


def test_a_parameter_that_the_tuner_calls_idle_is_let_through(lab: ModuleType) -> None:
    task = lab.objective()
    task.tuner.register_parameter("forgotten", nn.Parameter(torch.ones(2)))
    task.tuner.idle = lambda: {"forgotten"}
    result = lab.train(task, lab.digits("train"), Plan(max_steps=3))
    assert result.steps == 3


def test_zero_inits_pass_though_they_stand_still_in_the_first_step(lab: ModuleType) -> None:
    task = lab.objective()
    before = {n: t.clone() for n, t in task.tuner.state().items()}
    lab.train(task, lab.digits("train"), Plan(max_steps=1))
    still = {n for n, t in task.tuner.state().items() if torch.equal(t, before[n])}
    assert still == {"phi.attn_out"}  # psi is 0, so that phi gets a gradient of 0
    lab.train(task, lab.digits("train"), Plan(max_steps=2))


def test_no_gradient_names_all_of_them() -> None:
    parameters = trained(a=torch.ones(1), b=torch.ones(1), c=torch.ones(1))
    parameters["b"].parameter.grad = torch.zeros(1)
    with pytest.raises(NotSupported, match=r"^a, c got no gradient"):
        require_gradients(parameters)
    require_gradients(parameters, idle={"a", "c"})


def steps(parameters: dict[str, Trained], plan: OptimPlan, count: int, total: int) -> Movement:
    optimiser = build_optimiser(parameters, plan)
    movement = Movement(parameters)
    for number in range(count):
        set_rates(optimiser, plan, number, total)
        optimiser.step()
        movement.check(optimiser)
    return movement


def test_a_gradient_of_zero_twice_is_an_error() -> None:
    parameters = trained(a=torch.ones(1), b=torch.ones(1))
    parameters["a"].parameter.grad = torch.ones(1)
    parameters["b"].parameter.grad = torch.zeros(1)
    assert not steps(parameters, OptimPlan(), 1, 10).done
    with pytest.raises(NotSupported, match=r"^b did not move"):
        steps(parameters, OptimPlan(), 2, 10)


def test_an_optimiser_that_holds_another_tensor_is_an_error() -> None:
    parameters = trained(a=torch.ones(1))
    parameters["a"].parameter.grad = torch.ones(1)
    plan = OptimPlan()
    optimiser = build_optimiser(trained(a=torch.ones(1)), plan)
    movement = Movement(parameters)
    set_rates(optimiser, plan, 0, 10)
    movement.check(optimiser)
    with pytest.raises(NotSupported, match=r"^a did not move"):
        movement.check(optimiser)


def test_a_rate_too_small_for_float32_is_waited_for() -> None:
    parameters = trained(a=torch.ones(1))
    parameters["a"].parameter.grad = torch.ones(1)
    plan = OptimPlan(lr=1e-5, warmup_ratio=0.5)
    assert not steps(parameters, plan, 3, 20_000).done
    assert parameters["a"].parameter.item() == 1.0
    assert steps(parameters, plan, 200, 20_000).done


def test_a_gradient_far_below_the_epsilon_of_adam_is_waited_for() -> None:
    parameters = trained(a=torch.ones(1))
    parameters["a"].parameter.grad = torch.full((1,), 1e-14)
    assert not steps(parameters, OptimPlan(), 3, 10).done
    assert parameters["a"].parameter.item() == 1.0
    parameters["a"].parameter.grad = torch.full((1,), 1e-7)
    assert steps(parameters, OptimPlan(), 3, 10).done
