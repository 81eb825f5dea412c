"""`gist demo` of a hypernetwork: the comparison of HyperLlama on tasks that training never saw.

Two hypernetworks (one after hyperpretraining), one that goes on with queries adapted to its
prefixes, and one prefix for all tasks are trained; then the prefixes of held-out tasks are used as
they are, and tuned further from several starts. Paper: arXiv 2402.16817, whose abstract states the
orderings that are looked at here.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gistcli.artifacts.rundir import RunDirectory
from gistcli.atomic import write_json
from gistcli.backbones.prefix import Prefix
from gistcli.data.episodes import as_queries, held_out, tasks_of
from gistcli.evaluate.comparison_plots import plot_learning_curves
from gistcli.evaluate.language.held_out import (
    IN_CONTEXT,
    NEW_TOKENS,
    WRONG_TASK,
    ZERO_SHOT,
    Answers,
    HeldOut,
)
from gistcli.evaluate.language.records import write_json_lines
from gistcli.evaluate.language.tuned import TunedPrefixes, mean_of, random_like
from gistcli.evaluate.paired import interval_of_mean
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.methods.prefix import PrefixTuning
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run.compressing import compress
from gistcli.run.episodic import Hypertuning, open_episodic
from gistcli.run.loading import open_target
from gistcli.run.prefix_stages import train_stages

STEPS = (0, 5, 10, 20, 50)
"""Of prefix tuning, at which tasks are measured."""
AT = 10
"""Steps after which starts are compared."""
ROWS = {
    "nothing": "nothing",
    "wrong_task": "prefix of another task",
    "random": "random prefix",
    "shared": "one prefix trained on all tasks",
    "mean": "mean prefix of training tasks",
    "hyper": "prefix of the examples",
    "pretrained": "prefix, after hyperpretraining",
    "adapted": "prefix, network adapted",
    "in_context": "the examples themselves",
}
"""What stands in front of a held-out task's queries."""
ORDERINGS = (
    ("hyper", "nothing", 0),
    ("hyper", "wrong_task", 0),
    ("in_context", "hyper", 0),
    ("adapted", "hyper", 0),
    ("pretrained", "hyper", 0),
    ("hyper", "shared", AT),
    ("shared", "random", AT),
)
"""What is above what, after so many steps of prefix tuning, as the paper's abstract has it."""

Scores = dict[str, dict[int, np.ndarray]]
"""Row -> steps -> (N,) the score of every held-out task."""


def demonstrate_prefixes(
    recipe: Recipe, output: Path, *, reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Train what is compared, compress one task's examples, and measure held-out tasks.

    Args:
        recipe: of hypertuning, with a section hyper whose `context` is gists.
        output: folder that receives the runs, a prefix, the figures and their picture; it can be
            the folder of an earlier demo, which is then repeated where it was not finished.
        reporter: gets all talk.

    Returns:
        JSON: `rows` (scores by steps of prefix tuning), `orderings` (differences over tasks with
        95 % intervals), the runs, and the files to look at.

    Raises:
        RecipeError, Refused: no such hypernetwork, or held-out tasks that are too few.
        GistError: as `finetune`.
    """
    start = time.perf_counter()
    runs = train_stages(recipe, output, reporter)
    reporter.say("held-out tasks: prefixes as they are, and tuned further")
    main = _Opened(output / "hyper", reporter)
    scores = _scores(main, output, runs, recipe.seed, reporter)
    made = _compressed_task(main, output, reporter)
    rows = _rows(scores)
    there = [one for one in ORDERINGS if {*one[:2]} <= {*scores}]
    figures = {"rows": rows, "orderings": [_ordering(scores, *one) for one in there]}
    metrics = {task["metric"] for task in runs["hyper"]["tasks"] if task["split"] == main.split}
    metric = metrics.pop() if len(metrics) == 1 else "score"
    write_json(output / "orderings.json", {"metric": metric, **figures})
    draw_tuning([rows], output / "orderings.png", metric)
    kept = ("run", "metrics", "parameters", "steps", "seconds")
    return {
        "output": str(output),
        "tasks": len(scores["hyper"][0]),
        "metric": metric,
        **figures,
        "runs": {name: {k: one[k] for k in kept if k in one} for name, one in runs.items()},
        "compressed": {k: v for k, v in made.items() if k not in ("files", "output")},
        "files": _files(output),
        "next": _commands(recipe, output),
        "seconds": round(time.perf_counter() - start, 1),
    }


# --- measuring ----------------------------------------------------------------------------------


def _scores(
    main: _Opened, output: Path, runs: Mapping[str, Mapping[str, Any]], seed: int,
    reporter: Reporter,
) -> Scores:  # fmt: skip
    """Of all rows."""
    own, shared = main.tuned.made(), RunDirectory.open(output / "shared").read_tuner()[0]
    device = own.keys.device
    usual = main.tuned.made(main.training(len(main.tuned.asked)))
    starts = {
        "hyper": own,
        "mean": mean_of(usual),
        "shared": Prefix(shared["keys"].to(device), shared["values"].to(device)),
        "random": random_like(own, seed),
    }
    found = {name: main.curve(start, name) for name, start in starts.items()}
    for name in [name for name in ("pretrained", "adapted") if name in runs]:
        opened = _Opened(output / name, reporter)
        found[name] = opened.curve(opened.tuned.made(), name)
    told = [task for task in runs["hyper"]["tasks"] if task["split"] == main.split]
    conditions = {"nothing": ZERO_SHOT, "wrong_task": WRONG_TASK, "in_context": IN_CONTEXT}
    for row, condition in conditions.items():
        if all(condition in task for task in told):  # a single task has no other
            found[row] = {0: np.array([task[condition] for task in told])}
    return found


class _Opened:
    """A finished run with its held-out tasks.

    Attributes:
        split: of the tasks.
        tuned: tunes their prefixes.
    """

    def __init__(self, path: Path, reporter: Reporter) -> None:
        loaded = open_target(path, device="auto")
        run, _, recipe = loaded.require_run("demo")
        workload = open_episodic(recipe, run.splits_path)
        assert isinstance(workload, Hypertuning)
        assert isinstance(loaded.tuner, HyperTuner)
        self.workload, self.split = workload, workload.names[-1]
        workload.read(loaded.tuner, [self.split], loaded.device, reporter)
        asked = workload.held_out[self.split]
        tasks = tasks_of(workload.catalog, self.split)
        encoder = workload.episode_encoder(self.split)
        held = HeldOut(
            loaded.tuner, encoder, loaded.batch_size, recipe.eval.max_new_tokens or NEW_TOKENS,
            loaded.precision(),
        )  # fmt: skip
        lr = PrefixTuning.recommended["text"].lr
        self.tuned = TunedPrefixes(held, asked, as_queries(tasks, asked, encoder), lr, reporter)

    def training(self, count: int) -> Sequence[Any]:
        """Episodes of so many training tasks, from all over them."""
        tasks = tasks_of(self.workload.catalog, "train")
        spread = tasks[:: max(1, len(tasks) // count)][:count]
        return held_out(spread, self.tuned.held.encoder, queries=0)

    def curve(self, start: Prefix, name: str) -> dict[int, np.ndarray]:
        """Steps -> scores of all tasks."""
        found = self.tuned.curve(start, STEPS, ROWS[name])
        return {step: _by_task(answers) for step, answers in found.items()}


def _by_task(answers: Answers) -> np.ndarray:
    return np.array([np.mean([answer.score for answer in of_task]) for of_task in answers])


def _rows(scores: Scores) -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "front": ROWS[key],
            "scores": {str(step): float(values.mean()) for step, values in scores[key].items()},
        }
        for key in ROWS
        if key in scores
    ]


def _ordering(scores: Scores, above: str, below: str, step: int) -> dict[str, Any]:
    """A difference over tasks, and whether it is what the paper says."""
    gaps = scores[above][step] - scores[below][step]
    low, high = interval_of_mean(gaps)
    verdict = "holds" if low > 0 else "reversed" if high < 0 else "open"
    return {
        "above": above, "below": below, "steps": step, "difference": float(gaps.mean()),
        "interval": [low, high], "verdict": verdict,
    }  # fmt: skip


# --- what is left behind ------------------------------------------------------------------------


def _compressed_task(main: _Opened, output: Path, reporter: Reporter) -> dict[str, Any]:
    """The prefix of one held-out task's examples, as `gist compress` writes it."""
    episode = main.tuned.asked[0]
    rows = [{"prompt": i.prompt, "completion": i.completion} for i in episode.examples]
    write_json_lines(output / "examples.jsonl", rows)
    examples, folder = output / "examples.jsonl", output / "prefix"
    return compress(output / "hyper", examples, folder, reporter=reporter)


def draw_tuning(found: Sequence[Sequence[Mapping[str, Any]]], path: Path, metric: str) -> None:
    """The scores over steps of prefix tuning as a PNG: means of demos, and their range.

    Args:
        found: `rows` of each demo, such as one a seed.
        path: the PNG.
        metric: names the vertical axis.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    fronts = [row["front"] for row in found[0]]
    curves = {
        front: [_points(rows[place]["scores"]) for rows in found]
        for place, front in enumerate(fronts)
    }
    plot_learning_curves(
        {"held-out tasks": curves},
        fronts,
        path,
        title="Prefix tuning, by what it starts from",
        metric=metric,
    )


def _points(scores: Mapping[str, float]) -> list[tuple[int, float]]:
    """Steps and scores; what is never tuned is the same at all of them."""
    if len(scores) == 1:
        return [(step, scores["0"]) for step in STEPS]
    return [(int(step), value) for step, value in scores.items()]


def _files(output: Path) -> dict[str, str]:
    return {
        "figures": str(output / "orderings.json"),
        "prefix tuning": str(output / "orderings.png"),
        "a task's examples": str(output / "examples.jsonl"),
        "their prefix": str(output / "prefix" / "prefix.safetensors"),
        "the hypernetwork": str(output / "hyper"),
    }


def _commands(recipe: Recipe, output: Path) -> list[str]:
    assert recipe.hyper is not None
    hyper, examples = str(output / "hyper"), str(output / "examples.jsonl")
    start = [f"method.length={recipe.hyper['gists']}", f"method.init=run:{hyper}"]
    further = [part for each in start for part in ("--set", each)]
    tune = ["gist", "finetune", "--method", "prefix", "--model", recipe.model.name]
    tune += ["--data", examples, *further, "--max-steps", str(AT), "-o", str(output / "tuned")]
    compress_ = ["gist", "compress", hyper, examples, "-o", str(output / "peft")]
    return [shlex.join(command) for command in ([*compress_, "--format", "peft"], tune)]
