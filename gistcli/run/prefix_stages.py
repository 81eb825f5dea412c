"""The runs that HyperLlama's comparison is made of, from the recipe of a hypernetwork."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistcli.errors import Refused
from gistcli.recipe import Recipe
from gistcli.recipe.points import with_values
from gistcli.reporting import Reporter
from gistcli.run.episode_options import episodic_task
from gistcli.run.episodic import is_built_in
from gistcli.run.finetuning import finetune
from gistcli.run.hyperpretraining import hyperpretrain
from gistcli.run.settings import resolved

WHAT = {
    "compressor": "hyperpretraining: texts are told from compressed ones",
    "hyper": "the hypernetwork: tasks are learnt from compressed examples",
    "pretrained": "the same, after hyperpretraining",
    "adapted": "the hypernetwork goes on, with a network that adapts to its prefixes",
    "shared": "one prefix for all tasks, without a hypernetwork",
}
"""Run -> what it trains, in their order."""
ADAPTING = 3.0
"""Times the rate, where queries adapt: the second copy starts at zero, beside a trained one."""
SHORTER = 0.6
"""Of the recipe's length, for the run that adapts."""


def train_stages(recipe: Recipe, output: Path, reporter: Reporter) -> dict[str, dict[str, Any]]:
    """Train all of them, each into a folder of its name; what is complete is not trained again.

    Hyperpretraining is compared with none where the recipe names a run of it (`hyper.init`), or
    where its tasks are the built-in ones, which are documents, too.

    Args:
        recipe: of hypertuning, with a section hyper whose `context` is gists.
        output: folder of the runs.
        reporter: gets all talk.

    Returns:
        Run -> the object of `finetune`.

    Raises:
        Refused: the recipe makes no prefixes.
        GistError: as `finetune`.
    """
    changes = _changes(recipe, output)
    found = {}
    for number, (name, values) in enumerate(changes.items(), 1):
        reporter.say(f"{number}/{len(changes)}  {WHAT[name]}")
        train = hyperpretrain if name == "compressor" else finetune
        mine = with_values(recipe, values, "gist demo")
        found[name] = train(mine, output=output / name, reporter=reporter)
    return found


def _changes(recipe: Recipe, output: Path) -> Mapping[str, Mapping[str, Any]]:
    """Run -> the keys of the recipe that are others in it."""
    hyper = recipe.hyper
    if episodic_task(recipe) != "hypertuning" or hyper is None or hyper["context"] != "gists":
        raise Refused(
            "The recipe trains no hypernetwork that makes prefixes of tasks.",
            "Give one with a section hyper (context: gists), as recipes/hyper/quickstart.yaml has.",
        )
    rate, before = resolved(recipe).optim.lr, hyper["init"]
    assert rate is not None
    documents = before is None and is_built_in(recipe)
    if documents:
        before = output / "compressor"
    own = dict.fromkeys(("optim.lr", "optim.weight_decay", "optim.clip_norm"))
    found: dict[str, Mapping[str, Any]] = {
        "compressor": {"task.type": "auto"},
        "hyper": {"hyper.init": None},
        "pretrained": {"hyper.init": before and str(before)},
        "adapted": {
            "hyper.init": str(output / "hyper"),
            "hyper.adapt_downstream": True,
            "optim.lr": ADAPTING * rate,
            **_shorter(recipe),
        },
        "shared": {
            "method": {"name": "prefix", "length": hyper["gists"]},
            "hyper": None,
            "data.max_length": hyper["query_tokens"],
            "task.type": "hypertuning",
            **own,
        },
    }
    left_out = {"compressor": not documents, "pretrained": before is None}
    return {name: values for name, values in found.items() if not left_out.get(name)}


def _shorter(recipe: Recipe) -> dict[str, Any]:
    train = recipe.train
    if train.max_steps is not None:
        return {"train.max_steps": max(1, round(SHORTER * train.max_steps))}
    return {"train.epochs": max(1, round(SHORTER * train.epochs))}
