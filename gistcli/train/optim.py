"""The optimiser, built from what the tuner says it trains."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from gistcli.errors import UnknownName, WeightsError, did_you_mean
from gistcli.methods.base import Trained
from gistcli.train.plan import OptimPlan
from gistcli.train.schedule import factor, warmup_steps

OPTIMISERS = ("adamw", "sgd")


def build_optimiser(trainable: Mapping[str, Trained], plan: OptimPlan) -> Optimizer:
    """One parameter group for each (group, decay or not) that has parameters.

    Every group also holds `name`, the parameters' `names`, and `peak`, its full learning rate.
    Build it after the parameters are on their device and loaded.

    Raises:
        UnknownName: no such optimiser.
    """
    groups: dict[tuple[str, bool], list[str]] = {}
    for name, trained in trainable.items():
        groups.setdefault((trained.group, trained.decay), []).append(name)
    params = [
        {
            "params": [trainable[n].parameter for n in names],
            "names": names,
            "name": group if decay else f"{group}/no_decay",
            "peak": plan.head_lr if group == "head" else plan.lr,
            "weight_decay": plan.weight_decay if decay else 0.0,
        }
        for (group, decay), names in sorted(groups.items())
    ]
    if plan.name == "adamw":
        return AdamW(params, lr=plan.lr, betas=(0.9, plan.beta2), eps=1e-8, fused=True)
    if plan.name == "sgd":
        return SGD(params, lr=plan.lr, momentum=plan.momentum, fused=True)
    raise UnknownName(f"{plan.name!r} is no optimiser.", did_you_mean(plan.name, OPTIMISERS))


def set_rates(optimiser: Optimizer, plan: OptimPlan, step: int, total: int) -> dict[str, float]:
    """Sets the rates of optimiser step `step` (from 0); returns `lr` and, if it differs, `head_lr`.

    `lr` is the rate of the method's groups, or of the head where only a head is trained.
    """
    scale = factor(plan.schedule, step, total, warmup_steps(total, plan.warmup_ratio))
    rates = {}
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * scale
        rates["head_lr" if group["name"].startswith("head") else "lr"] = group["lr"]
    if "lr" not in rates:
        rates["lr"] = rates.pop("head_lr")
    return rates


def optimiser_state(optimiser: Optimizer) -> dict[str, Tensor]:
    """`KEY:PARAMETER` -> tensor, on the CPU; rates and decay are functions of the plan."""
    state: dict[str, Tensor] = {}
    for group in optimiser.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimiser.state.get(parameter, {}).items():
                if value is not None:
                    state[f"{key}:{name}"] = torch.as_tensor(value).detach().cpu()
    return state


def load_optimiser_state(
    optimiser: Optimizer, state: Mapping[str, Tensor], *, idle: Collection[str] = ()
) -> None:
    """Puts back what `optimiser_state` gave, on the device of each parameter.

    Args:
        optimiser: of the parameters that the state is of.
        state: as `optimiser_state` gives it.
        idle: names of parameters that get no gradient, and so have no state.

    Raises:
        WeightsError: the state is of parameters other than the optimiser's.
    """
    names = [name for group in optimiser.param_groups for name in group["names"]]
    number = {name: i for i, name in enumerate(names)}
    entries: dict[int, dict[str, Any]] = {}
    for full, value in state.items():
        key, _, name = full.partition(":")
        if name not in number:
            raise WeightsError(
                f"The optimiser state in the checkpoint holds {name!r}, which is not trained here.",
                "The checkpoint is of another method; start anew with --resume never.",
            )
        entries.setdefault(number[name], {})[key] = value
    missing = [n for n in names if number[n] not in entries and n not in idle]
    if entries and missing:
        raise WeightsError(
            f"The optimiser state in the checkpoint lacks {', '.join(missing)}.",
            "The checkpoint is of another method; start anew with --resume never.",
        )
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": entries, "param_groups": groups})
