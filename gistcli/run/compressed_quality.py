"""What a prefix is worth: its task's further pairs behind it, and behind what it replaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gistcli.backbones.prefix import Prefix
from gistcli.data.base import some
from gistcli.data.episodes import Episode, Task, tasks_of
from gistcli.data.episodes.drawing import Drawn
from gistcli.errors import DataError, GistError
from gistcli.evaluate.language.held_out import (
    IN_CONTEXT,
    NEW_TOKENS,
    OWN,
    WRONG_TASK,
    ZERO_SHOT,
    Answer,
    HeldOut,
    is_ranked,
)
from gistcli.evaluate.language.task_scores import METRICS
from gistcli.evaluate.metrics import wilson
from gistcli.reporting import Reporter
from gistcli.run.compressor import Compressor, with_known_options
from gistcli.run.episodic import Hypertuning, open_episodic
from gistcli.run.loading import Loaded


def unseen(asked: Task, shown: Task, episode: Episode, reporter: Reporter) -> Task:
    """Further pairs without those that the prefix was made of, with the options of these.

    Raises:
        DataError: all of them are among the examples.
    """
    asked = with_known_options(asked, [option for item in shown.items for option in item.options])
    read = {(item.prompt, item.completion) for item in shown.items[: episode.shown]}
    left = tuple(i for i in asked.items if (i.prompt, i.completion) not in read)
    if not left:
        raise DataError(
            f"{asked.name}: all {len(asked.items)} pairs are among the examples.",
            "Measure a prefix by other pairs.",
        )
    if len(left) < len(asked.items):
        twice = [i.origin for i in asked.items if (i.prompt, i.completion) in read]
        reporter.warn(f"{asked.name}: {some(twice, 'pair')} among the examples, not asked")
    return replace(asked, items=left)


def quality(
    made: Compressor,
    loaded: Loaded,
    shown: Task,
    asked: Task,
    episode: Episode,
    prefix: Prefix,
    batch_size: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Figures behind the prefix, without, with the examples in sight, behind another task's prefix.

    Args:
        made: the hypernetwork.
        loaded: its run, whose tasks give the other one.
        shown: whose examples the prefix is of.
        asked: further pairs, of `unseen`.
        episode: the examples that were read.
        prefix: of them.
        batch_size: texts at a time.
        reporter: gets all talk.

    Returns:
        `metrics`, `intervals` of rates, `counts` and `queries`.
    """
    queries = made.encoder.episode(asked, Drawn((), asked.items), options=True).queries
    episode = replace(episode, queries=queries)
    asked_for = None if loaded.recipe is None else loaded.recipe.eval.max_new_tokens
    held = HeldOut(
        made.tuner,
        made.encoder,
        batch_size,
        asked_for or NEW_TOKENS,
        made.precision,
        reporter,
        asked.name,
    )
    found = {OWN: held.behind_prefixes([episode], prefix)[0]}
    found[ZERO_SHOT] = held.zero_shot([episode])[0]
    found[IN_CONTEXT] = held.behind_examples([episode], IN_CONTEXT)[0]
    other = _another(made, loaded, shown)
    if other is not None:
        found[WRONG_TASK] = held.behind_prefixes([episode], made.prefix(other), WRONG_TASK)[0]
    ranked = all(map(is_ranked, queries))
    metric = METRICS[0 if ranked else 1]
    return _figures(metric, found, None if other is None else other.task)


def _another(made: Compressor, loaded: Loaded, shown: Task) -> Episode | None:
    """Examples of another task of the run; None where its data are gone, or no tasks."""
    if loaded.recipe is None or loaded.run is None:
        return None
    try:
        workload = open_episodic(loaded.recipe, loaded.run.splits_path, model=loaded.backbone.name)
        if not isinstance(workload, Hypertuning):
            return None
        tasks = [t for split in reversed(workload.names) for t in tasks_of(workload.catalog, split)]
        other = next((t for t in tasks if t.name != shown.name), None)
        if other is None:
            return None
        items = other.items[: made.encoder.options.max_examples]
        return made.encoder.episode(other, Drawn(items, ()))
    except GistError:
        return None


def _figures(metric: str, found: dict[str, list[Answer]], other: str | None) -> dict[str, Any]:
    metrics, intervals = {}, {}
    for condition, answers in found.items():
        name = metric if condition == OWN else f"{metric}_{condition}"
        scores = [answer.score for answer in answers]
        metrics[name] = float(np.mean(scores))
        if metric == METRICS[0]:
            intervals[name] = list(wilson(int(sum(scores)), len(scores)))
    return {
        "metrics": metrics,
        "intervals": intervals,
        "queries": len(found[OWN]),
        "wrong_task": other,
    }
