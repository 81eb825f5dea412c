"""From a recipe with nulls to plain numbers, and where each of them comes from."""

from __future__ import annotations

from typing import Any

from gistcli.methods.base import Method
from gistcli.recipe import OptimSection, Recipe
from gistcli.reporting import Reporter
from gistcli.train.plan import OptimPlan, Plan

RECOMMENDED = ("lr", "head_lr", "weight_decay", "clip_norm")
MODALITY = "vision"


def training_plan(recipe: Recipe, method: Method) -> Plan:
    """The recipe's train, eval and optim sections with every null filled in."""
    train, evaluation = recipe.train, recipe.eval
    return Plan(
        seed=recipe.seed,
        epochs=train.epochs,
        max_steps=train.max_steps,
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        eval_every=evaluation.every,
        select=evaluation.select,
        metric=evaluation.metric or "accuracy",
        patience=train.patience,
        save_steps=train.save_steps,
        keep=train.keep,
        max_time=train.max_time,
        deterministic=train.deterministic,
        optim=optim_plan(recipe.optim, method),
    )


def optim_plan(optim: OptimSection, method: Method) -> OptimPlan:
    """The optimiser's numbers: the recipe's, and the method's where that is silent."""
    recommended = method.recommended[MODALITY]
    chosen = {
        key: getattr(recommended, key) if getattr(optim, key) is None else getattr(optim, key)
        for key in RECOMMENDED
    }
    chosen["clip_norm"] = chosen["clip_norm"] or None  # 0 in a recipe: never clip
    same = ("name", "momentum", "schedule", "warmup_ratio")
    return OptimPlan(**chosen, **{key: getattr(optim, key) for key in same})


def say_defaults(recipe: Recipe, method: Method, reporter: Reporter) -> None:
    """One line a section: every key that nobody gave, with its value and where that comes from."""
    optim = optim_plan(recipe.optim, method)
    sections: dict[str, list[str]] = {}
    for key, (value, origin) in recipe.defaulted().items():
        section, _, name = key.rpartition(".")
        if section == "optim" and name in RECOMMENDED:
            value, origin = getattr(optim, name), f"{method.name} default"
        source = "" if origin == "default" else f" ({origin})"
        sections.setdefault(section or "recipe", []).append(f"{name} {_shown(value)}{source}")
    for section, values in sections.items():
        reporter.say(f"default {section}: {', '.join(values)}")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
