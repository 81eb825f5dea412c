"""`gist finetune --dry-run` on text: counts, steps, and two examples as the model sees them."""

from __future__ import annotations

from typing import Any

import torch

from gistcli.data.text import passages
from gistcli.errors import NotFound
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.assembling import Assembly, say_parameters, site_rows
from gistcli.run.episodic import Episodic
from gistcli.run.memory import Estimator, estimate_of_dry_run, planned_setting
from gistcli.run.settings import say_defaults
from gistcli.run.texts import TextTask, open_text

SHOWN = 2
MARKS = ("\u27e6", "\u27e7")
"""White square brackets, around what is learnt."""


def dry_run_text(recipe: Recipe, reporter: Reporter) -> dict[str, Any]:
    """Parameters, sites and steps, with the model on the meta device.

    Tokenizer or data that are not there are named; a classifier's head is then counted by
    `data.classes`.

    Args:
        recipe: resolved.
        reporter: gets all talk.

    Raises:
        GistError: recipe, model, method or data are wrong.
    """
    workload = _open(recipe, reporter)
    asked = None if recipe.task.type == "auto" else recipe.task.type
    task = workload.task if workload else asked
    classes = len(workload.classes) if workload else recipe.data.classes
    setting = planned_setting(recipe)
    estimator = Estimator(recipe, workload, setting, task=task, classes=classes or 1)
    assembly, plan = estimator.planned, setting.plan
    backbone = assembly.backbone
    if workload is not None:
        workload.say(reporter)
    say_parameters(assembly, reporter, head=bool(classes) or not backbone.head_names())
    say_defaults(recipe, reporter)
    steps = plan.max_steps
    if workload is not None:
        per_epoch = _encode(workload, assembly, plan.batch_size, reporter)
        steps = plan.total_steps(per_epoch)
        reporter.say(f"{steps} steps ({per_epoch} an epoch) of {plan.batch_size} examples")
    return {
        "parameters": assembly.parameters(),
        "steps": steps,
        "merge": assembly.tuner.merge_refusal(),
        "sites": site_rows(assembly.tuner.sites),
        "memory": estimate_of_dry_run(estimator, reporter),
        "classes": workload.classes if workload else None,
        "examples": workload.catalog.counts() if workload else None,
    }


def _open(recipe: Recipe, reporter: Reporter) -> TextTask | None:
    try:
        return open_text(recipe, None)
    except NotFound as error:  # data that are there and bad, or asked for wrongly, are an error
        reporter.warn(f"not looked at: data ({error.message})")
        return None


def _encode(workload: TextTask, assembly: Assembly, batch_size: int, reporter: Reporter) -> int:
    """Shows the first examples; batches an epoch."""
    workload.encode(assembly.backbone, ["train"], torch.device("cpu"), reporter)
    if isinstance(workload, Episodic):
        return _show_episodes(workload, batch_size, reporter)
    split = workload.splits["train"]
    filled = split.efficiency(batch_size)
    reporter.say(f"{filled:.0%} of the places in a batch hold a token, the rest is padding")
    learns = workload.task in ("causal_lm", "seq2seq")
    for sequence in split.sequences[:SHOWN]:
        parts = passages(sequence, workload.tokenizer)
        text = "".join(f"{MARKS[0]}{t}{MARKS[1]}" if learnt else t for t, learnt in parts)
        what = (
            f"{sequence.supervised} of {len(sequence)} tokens learnt"
            if learns and not sequence.apart
            else f"{len(sequence)} tokens read, {sequence.supervised} learnt"
            if learns
            else (f"{len(sequence)} tokens, {sequence.target}")
        )
        reporter.say(f"{sequence.name} ({what}):\n{text}")
    return split.batches_per_epoch(batch_size)


def _show_episodes(workload: Episodic, batch_size: int, reporter: Reporter) -> int:
    """Shows what is read and learnt of the first rows; batches an epoch."""
    split, options = workload.splits["train"], workload.options
    decode = workload.tokenizer.base.decode
    for number in range(min(SHOWN, len(split))):
        episode = split.episode(number, seed=workload.recipe.seed)
        what = f"{episode.shown} examples" if episode.shown else "no examples"
        left = f", {episode.left} more did not fit" if episode.left else ""
        front = {
            "gists": f"{len(episode.context)} tokens become {options.gists} gists",
            "full": f"{len(episode.context)} tokens in sight of the queries",
            "none": "queries alone",
        }[options.context]
        lines = [f"{episode.task} ({what}{left}; {front}):"]
        if options.context != "none":
            lines.append(decode(episode.context.tolist()))
        for query in episode.queries[:SHOWN]:
            answer = decode(query.answer.tolist())
            lines.append(f"{decode(query.prompt.tolist())}{MARKS[0]}{answer}{MARKS[1]}")
        reporter.say("\n".join(lines))
    return split.batches_per_epoch(batch_size)
