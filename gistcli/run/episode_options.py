"""What a recipe says of rows of examples and queries: which task, and the keys of `hyper`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from gistcli.data.episodes import EpisodeOptions
from gistcli.data.text import Enough, Tokenizer
from gistcli.data.text.encoding import number
from gistcli.errors import RecipeError
from gistcli.recipe import Recipe

TASKS = ("compression", "hypertuning")
MEASURED_ROWS = 512
"""Of a split, at most, by which the loss is told while training goes on; documents of one that has
a file of its own, at the end as well."""


def episodic_task(recipe: Recipe) -> str | None:
    """Which of these tasks a recipe has; None for another.

    Raises:
        RecipeError: a hypernetwork for another task, or compression without one.
    """
    asked = recipe.task.type
    if asked == "compression" and not (recipe.hyper and recipe.hyper["context"] == "gists"):
        raise RecipeError(
            "task.type: compression trains a hypernetwork, which the recipe has none of.",
            "Add a section hyper, such as `hyper: {gists: 16}`.",
        )
    if asked in TASKS:
        return asked
    if recipe.hyper is None:
        return None
    if asked == "auto":
        return "hypertuning"
    raise RecipeError(
        f"hyper: a hypernetwork learns tasks or documents, and task.type is {asked}.",
        "Set task.type to hypertuning or compression, or leave the section hyper out.",
    )


def episode_options(recipe: Recipe, positions: int | None) -> EpisodeOptions:
    """The keys of the section `hyper` that concern data; without one, queries alone.

    Args:
        recipe: of the run.
        positions: of the network, where they are limited.

    Raises:
        RecipeError: rows that are longer than the network carries.
    """
    if recipe.hyper is None:
        own = EpisodeOptions(context="none")
        most = min(own.query_tokens, positions or own.query_tokens)
        options = replace(own, query_tokens=recipe.data.max_length or most)
        need, keys = options.query_tokens, "data.max_length"
    else:
        options = options_of(recipe.hyper)
        alone = options.context == "none"
        need = options.query_tokens + (0 if alone else options.example_tokens)
        keys = "hyper.query_tokens" if alone else "hyper.example_tokens and hyper.query_tokens"
    if positions is not None and need > positions:
        raise RecipeError(
            f"{keys} come to {need} tokens, and the model has {positions} positions.",
            "Lower them.",
        )
    return options


def options_of(hyper: Mapping[str, Any]) -> EpisodeOptions:
    """The keys of a section `hyper` that concern data."""
    names = [field.name for field in fields(EpisodeOptions)]
    return EpisodeOptions(**{name: hyper[name] for name in names if name in hyper})


def enough_documents(recipe: Recipe) -> Enough | None:
    """How many documents a run can use, of each of which a row comes at least.

    A few hundred are read in any case, for some may be too short. None is all of them: where
    nobody said how many steps there are, or some are drawn from all.
    """
    train = recipe.train
    if train.max_steps is None or recipe.data.shots is not None:
        return None
    used = train.max_steps * train.batch_size
    steps = f"{number(train.max_steps, 'step')} of {number(train.batch_size, 'row')} can use"
    why = f"which {steps}" if used >= MEASURED_ROWS else f"more than {steps}"
    return Enough(max(used, MEASURED_ROWS), MEASURED_ROWS, why)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 over words, ids and what stands around a text."""
    content = [sorted(tokenizer.base.get_vocab().items()), tokenizer.prefix, tokenizer.eos_id]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
