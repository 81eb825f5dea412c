"""From a recipe with nulls to plain numbers, and where each of them comes from."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from gistcli import registry
from gistcli.backbones.base import Modality
from gistcli.backbones.locating import EMBEDDED
from gistcli.errors import GistError, NotSupported
from gistcli.methods.base import Recommended
from gistcli.recipe import OptimSection, Recipe
from gistcli.reporting import Reporter
from gistcli.train.plan import OptimPlan, Plan

OF_TEXT = (
    "model.quantize",
    "data.format", "data.prompt", "data.replace", "data.chat_template", "data.train_on",
    "data.max_length", "data.max_target_length", "data.truncate", "data.packing",
    "data.group_by_length", "eval.protocol", "eval.limit", "eval.max_new_tokens",
    "task.label_words",
)  # fmt: skip
"""Keys that only models of text have a use for."""
OF_PICTURES = (
    "data.source", "data.subset", "data.augment", "data.preprocess", "model.img_size",
    "model.drop_path",
)  # fmt: skip
"""Keys, and sections, that only models of pictures have."""
RECOMMENDED = ("lr", "head_lr", "weight_decay", "clip_norm")


def modality_of(recipe: Recipe) -> Modality:
    """What the model reads; vision where that cannot be told, which opening the model will say."""
    name = recipe.model.name
    if name in EMBEDDED or Path(name).is_dir():
        return _read_modality(name)
    if "/" not in name:
        return "vision"  # names without a folder are timm's
    return _hub_modality(name)


def _read_modality(name: str) -> Modality:
    from gistcli.backbones import loading

    try:
        return loading.modality_of(name)
    except GistError:
        return "vision"


@cache
def _hub_modality(name: str) -> Modality:
    """Asked once a process: without a network every question costs a second and a half."""
    return _read_modality(name)


def methods_for(modality: Modality) -> list[str]:
    """Registered methods that work on what a model reads."""
    names = registry.names("methods")
    return [name for name in names if modality in registry.resolve("methods", name).recommended]


def _recommended(recipe: Recipe) -> Recommended:
    """The method's own settings.

    Raises:
        NotSupported: it has none for what the model reads.
    """
    method, modality = recipe.build_method(), modality_of(recipe)
    if modality not in method.recommended:
        raise NotSupported(
            f"{method.name} works on {', '.join(method.recommended)}, and {recipe.model.name} "
            f"reads {modality}.",
            f"Methods for {modality}: {', '.join(methods_for(modality))}.",
        )
    found: Recommended = method.recommended[modality]
    return found


def training_plan(recipe: Recipe, metric: str = "accuracy") -> Plan:
    """The train, eval and optim sections of a resolved recipe as plain numbers.

    Args:
        recipe: resolved.
        metric: what decides where the recipe names none.

    A micro-batch that is `auto` is all of the batch here; `memory.fitted` finds its size.
    """
    train, evaluation = recipe.train, recipe.eval
    size = train.micro_batch_size
    return Plan(
        seed=recipe.seed,
        epochs=train.epochs,
        max_steps=train.max_steps,
        batch_size=train.batch_size,
        micro_batch_size=None if size == "auto" else size,
        eval_every=evaluation.every,
        select=evaluation.select,
        metric=evaluation.metric or metric,
        patience=train.patience,
        save_steps=train.save_steps,
        keep=train.keep,
        max_time=train.max_time,
        deterministic=train.deterministic,
        optim=optim_plan(recipe.optim),
    )


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with the method's own rates where it has none, as it is kept with the run.

    Raises:
        NotSupported: a method that does not work on what the model reads.
    """
    recommended = _recommended(recipe)
    optim = recipe.optim
    rates = {k: getattr(recommended, k) for k in RECOMMENDED if getattr(optim, k) is None}
    if rates.get("clip_norm", 0.0) is None:
        rates["clip_norm"] = 0.0  # never clip, said in the recipe's own words
    return recipe.model_copy(update={"optim": optim.model_copy(update=rates)})


def optim_plan(optim: OptimSection) -> OptimPlan:
    """The optimiser's numbers, of a resolved recipe."""
    same = {field.name for field in fields(OptimPlan)} - {"clip_norm"}
    values = {key: getattr(optim, key) for key in same}
    return OptimPlan(**values, clip_norm=optim.clip_norm or None)


def say_defaults(recipe: Recipe, reporter: Reporter) -> None:
    """One line a section: every key that nobody gave, with its value and where that comes from."""
    sections: dict[str, list[str]] = {}
    useless = OF_PICTURES if modality_of(recipe) == "text" else OF_TEXT
    for key, (value, origin) in recipe.defaulted().items():
        if key.startswith(useless):
            continue
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
