"""`gist eval` on text: the figures that a run would have on a split, or on other data."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistcli.errors import RecipeError, Refused, did_you_mean
from gistcli.evaluate.language.answers import FIGURES
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.answering import Answering
from gistcli.run.loading import Loaded
from gistcli.run.settings import training_plan
from gistcli.run.split_choice import choose_split
from gistcli.run.texts import TextTask, open_text
from gistcli.run.workload import Measured, Setting

FORMS = {"commonsense": "plain", "math": "alpaca"}
"""How the published protocols put an instruction, for folders that do not know it."""


@dataclass(frozen=True)
class Asked:
    """What `gist eval` was asked for.

    Attributes:
        data: None for the run's own, divided as they were.
        split: None for test, else val.
        batch_size: examples per forward pass.
        protocol, limit, max_new_tokens: in place of the recipe's keys of `eval`.
        untuned: the pretrained network, without what was trained.
        output: file for the outputs of every example.
    """

    data: str | None = None
    split: str | None = None
    batch_size: int | None = None
    protocol: str | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    untuned: bool = False
    output: Path | None = None


def evaluate_text(loaded: Loaded, asked: Asked, reporter: Reporter) -> dict[str, Any]:
    """Metrics on the run's own split, or on other data of the same task.

    Args:
        loaded: a run whose network reads text, or a merged folder.
        asked: what for.
        reporter: gets all talk.

    Raises:
        Refused: a merged folder knows no data of its own; an untuned network without a head.
        RecipeError: a protocol that there is not, or that is not for this task.
        DataError, NotFound: what is there cannot be used, or has classes unknown to the model.
    """
    recipe = _recipe(loaded, asked, reporter)
    pinned = loaded.run.splits_path if loaded.run is not None and asked.data is None else None
    workload, split = open_measured(loaded, recipe, pinned, asked.split)
    measured = measure_text(
        workload,
        loaded,
        split,
        asked.batch_size,
        asked.untuned,
        reporter,
        answers_only=asked.protocol is not None,
    )
    if asked.output is not None:
        workload.write_outputs(asked.output, measured)
    return {"data": recipe.data.path, **described(workload, split, measured)}


def open_measured(
    loaded: Loaded, recipe: Recipe, pinned: Path | None, split: str | None
) -> tuple[TextTask, str]:
    """The data of a recipe for a tuned network, and the split that is measured.

    Raises:
        GistError: as `open_text`; a recipe whose keys of `eval` do not fit.
    """
    name = loaded.backbone.name
    workload = open_text(recipe, pinned, model=name, whole=pinned is None)
    if loaded.classes:
        workload.catalog = workload.catalog.with_classes(loaded.classes)
    workload.require_sense()
    return workload, choose_split(workload.catalog, split)


def measure_text(
    workload: TextTask,
    loaded: Loaded,
    split: str,
    batch_size: int | None,
    untuned: bool,
    reporter: Reporter,
    *,
    answers_only: bool = False,
) -> Measured:
    """All figures of a split, of the tuned network or of the pretrained one under it.

    Args:
        workload: its data.
        loaded: the network.
        split: of the data.
        batch_size: examples per forward pass; None for that of the run.
        untuned: without what was trained.
        reporter: gets all talk.
        answers_only: leave out the loss where a protocol asks for answers.

    Raises:
        Refused: a pretrained network that has no head for the task.
    """
    if untuned:
        require_untuned(loaded)
    workload.read(loaded.tuner, [split], loaded.device, reporter)
    plan = training_plan(workload.recipe, workload.metric)
    setting = Setting(plan, loaded.device, loaded.precision(), batch_size or loaded.batch_size)
    measure = workload.conclude
    if answers_only and isinstance(workload, Answering) and workload.protocol is not None:
        measure = workload.answer
    with loaded.tuner.disabled() if untuned else nullcontext():
        return measure(loaded.tuner, split, setting, reporter)


def require_untuned(loaded: Loaded) -> None:
    """Whether a run's network can do its task without what was trained.

    Raises:
        Refused: it is merged, or its head is new.
    """
    if loaded.run is None:
        raise Refused(
            f"{loaded.name} is a merged folder: the untuned network is no longer in it.",
            "Give the run it was merged from.",
        )
    if loaded.backbone.head_names():
        raise Refused(
            f"{loaded.name} is a {loaded.task} with a new head, which is random numbers before "
            "training: there is nothing untuned to be measured.",
            "Compare with a head alone: `gist finetune --method linear`.",
        )


def described(workload: TextTask, split: str, measured: Measured) -> dict[str, Any]:
    """Figures of a split as JSON."""
    kept = workload.result({split: measured})
    found = {
        "metrics": {f"{split}/{k}": v for k, v in workload.scalars(measured).items()},
        "intervals": kept["intervals"],
        "examples": len(workload.splits[split]),
        "per_class": kept.get("per_class", {}).get(split),
    }
    if "answers" in kept:
        found |= {"protocol": kept["protocol"], "answers": kept["answers"][split]}
        found["counts"] = kept["counts"]
    return found


def _recipe(loaded: Loaded, asked: Asked, reporter: Reporter) -> Recipe:
    """The run's, with what was asked for in its place; of a merged folder all defaults."""
    given = {
        key: value
        for key in ("protocol", "limit", "max_new_tokens")
        if (value := getattr(asked, key)) is not None
    }
    if asked.protocol is not None and asked.protocol not in FIGURES:
        raise RecipeError(
            f"--protocol: {asked.protocol!r} is no protocol.", did_you_mean(asked.protocol, FIGURES)
        )
    if loaded.recipe is None:
        return _of_folder(loaded, asked, given, reporter)
    recipe = loaded.recipe
    if asked.data is not None:
        section = recipe.data.model_copy(update={"path": asked.data, "shots": None})
        recipe = recipe.model_copy(update={"data": section})
    # what decided in training is not asked again
    measure = recipe.eval.model_copy(update={**given, "metric": None} if given else {})
    if asked.protocol == "perplexity":
        measure = measure.model_copy(update={"limit": None, "max_new_tokens": None, **given})
    return recipe.model_copy(update={"eval": measure})


def _of_folder(loaded: Loaded, asked: Asked, given: dict[str, Any], reporter: Reporter) -> Recipe:
    if asked.data is None:
        raise Refused(
            f"{loaded.name} is a merged folder and knows no data.",
            f"Say on what: `gist eval {loaded.name} --data PATH`.",
        )
    data = {"path": asked.data}
    form = FORMS.get(asked.protocol or "")
    if form is not None:
        data["prompt"] = form
        reporter.say(
            f"{asked.protocol}: instructions are put as published (data.prompt: {form}); "
            "`gist compare RUN --merged DIR` puts them as the run has learnt them"
        )
    tree = {
        "task": {"type": loaded.task},
        "model": {"name": loaded.name},
        "data": data,
        "eval": given,
    }
    return Recipe.model_validate(tree)
