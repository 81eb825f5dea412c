"""`method.init: run:DIR`: prefix tuning that starts from what another run has to offer.

The run of a hypernetwork compresses the training examples; that of a prefix trained over all tasks,
the paper's shared prefix, has one already.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from gistcli.artifacts.rundir import RunDirectory
from gistcli.artifacts.tuner_file import TunerInfo
from gistcli.backbones import Backbone
from gistcli.backbones.prefix import Prefix
from gistcli.data.episodes import Item, Task, tasks_of
from gistcli.data.episodes.pairs import as_items
from gistcli.data.text import examples_of, open_tokenizer
from gistcli.errors import BaseMismatch, RecipeError, Refused
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.hyper.section import WithHyper
from gistcli.methods.base import Method, Tuner
from gistcli.methods.prefix import PrefixTuner, PrefixTuning
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.compressor import Compressor, compressor
from gistcli.run.episodic import Hypertuning
from gistcli.run.methods import method_of
from gistcli.run.texts import CausalText
from gistcli.run.workload import Workload

TEMPLATE = re.compile(r"Input:\n(.*)\nOutput:\n?", re.DOTALL)
"""How hypernetworks see a prompt, whose examples and queries are put alike."""


def prefix_to_start_from(
    recipe: Recipe, workload: Workload, backbone: Backbone, reporter: Reporter
) -> Prefix | None:
    """The prefix that a run of the recipe starts from; None where it names no other run.

    Args:
        recipe: of the run that starts.
        workload: its data.
        backbone: its network, on which no tuner acts.
        reporter: gets all talk.

    Raises:
        NotFound, WeightsError: the other run is not there, unfinished or damaged.
        BaseMismatch: it was trained on another network, or with another tokenizer.
        Refused: it has no prefix to offer.
        RecipeError: its prefixes have another length.
        DataError: training examples that are no pairs, or none that fits.
    """
    method: Method = recipe.build_method()
    path = method.from_run if isinstance(method, PrefixTuning) else None
    if path is None or not isinstance(method, PrefixTuning):
        return None
    state, info = RunDirectory.open(path).read_tuner()
    there = method_of(info.method)
    _require_same(method, there, path, info, backbone)
    if isinstance(there, WithHyper) and not isinstance(workload, (Hypertuning, CausalText)):
        raise Refused(
            f"{workload.name} has no prompts with answers, which the hypernetwork of "
            f"method.init: {path} reads.",
            "Use a language model (task.type causal_lm), or another method.init.",
        )
    tuner: Tuner = there.attach(backbone)
    try:
        tuner.load_state(state)
        if isinstance(tuner, PrefixTuner):
            with torch.no_grad():
                prefix = tuner.prefix()
                return Prefix(prefix.keys.clone(), prefix.values.clone())
        return _compressed(tuner, info, path, workload, reporter)
    finally:
        tuner.detach()


def _require_same(
    here: PrefixTuning, there: Method, path: Path, info: TunerInfo, backbone: Backbone
) -> None:
    name = f"method.init: {path}"
    if isinstance(there, WithHyper) and there.hyper.compresses:
        length = there.hyper.gists
        if there.hyper.adapt_downstream:
            raise Refused(
                f"{name} makes prefixes for a network that it adapted to them, not for its base.",
                "Write both, `gist compress` and `gist merge`, and tune the prefix.safetensors on "
                "the merged folder.",
            )
    elif isinstance(there, PrefixTuning):
        length = there.length
    else:
        raise Refused(
            f"{name} is a run of {there.label()}, which makes no prefix.",
            "Give that of a hypernetwork, or of the method prefix.",
        )
    if info.backbone.fingerprint != backbone.fingerprint:
        raise BaseMismatch(
            f"{name} was trained on another network ({info.backbone.name}, fingerprint "
            f"{info.backbone.fingerprint[:12]}, here {backbone.fingerprint[:12]}).",
            "Use the model that it was trained on.",
        )
    if length != here.length:
        raise RecipeError(
            f"{name} makes prefixes of {length} positions, and method.length is {here.length}.",
            f"Set method.length to {length}.",
        )


def _compressed(
    tuner: Tuner, info: TunerInfo, path: Path, workload: Workload, reporter: Reporter
) -> Prefix:
    assert isinstance(tuner, HyperTuner)
    folder = tuner.backbone.origin.config["folder"]
    made = compressor(tuner, info, open_tokenizer(folder), str(path))
    episode = made.read(_training_task(made, workload, reporter), reporter)
    prefix = made.prefix(episode)
    reporter.say(
        f"method.init: {episode.shown} training examples, {len(episode.context):,} tokens, became "
        f"a prefix of {prefix.length}"
    )
    return prefix


def _training_task(made: Compressor, workload: Workload, reporter: Reporter) -> Task:
    """The training examples as the pairs of a task."""
    name = f"{workload.name} train"
    if isinstance(workload, Hypertuning):
        tasks = tasks_of(workload.catalog, "train")
        if len(tasks) != 1:
            raise Refused(
                f"{name} holds {len(tasks)} tasks, and a prefix is made of one.",
                "Give the examples of one task, or init a run of the method prefix.",
            )
        return tasks[0]
    assert isinstance(workload, CausalText)
    items = as_items(examples_of(workload.catalog, "train"), name, False, [])
    return Task(name, name, _bare(items, made, reporter))


def _bare(items: tuple[Item, ...], made: Compressor, reporter: Reporter) -> tuple[Item, ...]:
    """Prompts without the template, which examples get anyway."""
    if made.encoder.options.template == "plain":
        return items
    found = [TEMPLATE.fullmatch(item.prompt) for item in items]
    if not all(found):
        reporter.warn(
            "the hypernetwork knows prompts as `Input:`, the text, `Output:`, each on a line of "
            "its own, and the training prompts are put otherwise: its prefix helps less"
        )
    return tuple(
        replace(item, prompt=match[1]) if match else item
        for item, match in zip(items, found, strict=True)
    )
