"""From a recipe with nulls to plain numbers, and where each of them comes from."""

from __future__ import annotations

from typing import Any

from gistcli.recipe import OptimSection, Recipe
from gistcli.reporting import Reporter
from gistcli.train.plan import OptimPlan, Plan

RECOMMENDED = ("lr", "head_lr", "weight_decay", "clip_norm")
MODALITY = "vision"


def training_plan(recipe: Recipe) -> Plan:
    """The train, eval and optim sections of a resolved recipe as plain numbers."""
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
        optim=optim_plan(recipe.optim),
    )


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with the method's own rates where it has none, as it is kept with the run."""
    recommended = recipe.build_method().recommended[MODALITY]
    optim = recipe.optim
    rates = {k: getattr(recommended, k) for k in RECOMMENDED if getattr(optim, k) is None}
    if rates.get("clip_norm", 0.0) is None:
        rates["clip_norm"] = 0.0  # never clip, said in the recipe's own words
    return recipe.model_copy(update={"optim": optim.model_copy(update=rates)})


def optim_plan(optim: OptimSection) -> OptimPlan:
    """The optimiser's numbers, of a resolved recipe."""
    same = ("name", "lr", "head_lr", "weight_decay", "momentum", "schedule", "warmup_ratio")
    values = {key: getattr(optim, key) for key in same}
    return OptimPlan(**values, clip_norm=optim.clip_norm or None)


def say_defaults(recipe: Recipe, reporter: Reporter) -> None:
    """One line a section: every key that nobody gave, with its value and where that comes from."""
    sections: dict[str, list[str]] = {}
    for key, (value, origin) in recipe.defaulted().items():
        section, _, name = key.rpartition(".")
        if section == "optim" and name in RECOMMENDED:
            origin = f"{recipe.method['name']} default"
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
