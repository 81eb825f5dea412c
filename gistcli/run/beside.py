"""Networks beside finished runs in a table: the untuned one under them, a merged folder.

Each is measured on the data of a run and by its keys of `eval`; what was found is kept in the run,
in `evaluations/NAME`, and read from there as long as it still holds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistcli.artifacts.rundir import RunDirectory
from gistcli.artifacts.targets import kind_of
from gistcli.errors import GistError, Refused
from gistcli.reporting import Reporter
from gistcli.run.classification import Classification
from gistcli.run.collecting import Entry, listed
from gistcli.run.evaluation import find_catalog, open_split
from gistcli.run.image_classification import ImageClassification
from gistcli.run.loading import Loaded, open_target
from gistcli.run.settings import training_plan
from gistcli.run.shelf import Shelf
from gistcli.run.text_evaluation import measure_text, open_measured, require_untuned
from gistcli.run.workload import Measured, Setting, Workload

UNTUNED, MERGED = "untuned", "merged"


@dataclass(frozen=True)
class Beside:
    """What `gist compare` is asked to measure beside its runs.

    Attributes:
        untuned: the pretrained language model under the runs.
        merged: a folder that was merged from the only run; None for none.
        device: where to compute.
    """

    untuned: bool = False
    merged: Path | None = None
    device: str = "auto"


def measured_beside(
    entries: Sequence[Entry], asked: Beside, split: str, reporter: Reporter
) -> list[Entry]:
    """The runs with what was asked for beside them: the untuned networks first.

    Args:
        entries: finished runs.
        asked: what to measure.
        split: of the figure that is compared.
        reporter: gets all talk.

    Raises:
        Refused: an untuned network without a head, or a merged folder beside several runs.
        GistError: models or data that are no longer what they were.
    """
    found = list(entries)
    if asked.merged is not None:
        if len(entries) != 1:
            raise Refused(
                f"--merged is for one run, the one that {asked.merged} was merged from, and not "
                f"for {len(entries)}.",
                f"Give one of {listed([e.path for e in entries])}.",
            )
        if kind_of(asked.merged) != "merged":
            raise Refused(f"{asked.merged} is a run.", "Give it as one: `gist compare RUN RUN`.")
        found.append(_merged(entries[0], asked.merged, asked.device, split, reporter))
    if asked.untuned:
        first: dict[Any, Entry] = {}
        for entry in entries:
            first.setdefault(_base(entry, split), entry)
        found[:0] = [_untuned(entry, asked.device, split, reporter) for entry in first.values()]
    return found


def _base(entry: Entry, split: str) -> tuple[Any, ...]:
    """Runs with the same have the same untuned figures."""
    data = str({**entry.recipe["data"], "split_seed": 0, "shot_seed": 0})
    weights = entry.run.info.backbone.fingerprint
    return entry.task, entry.fingerprint(split), weights, str(entry.recipe["eval"]), data


def _untuned(entry: Entry, device: str, split: str, reporter: Reporter) -> Entry:
    weights = entry.run.info.backbone.fingerprint
    kept = _kept(entry, UNTUNED, weights, split)
    if kept is not None:
        return kept
    loaded = open_target(entry.run.path, device=device)
    require_untuned(loaded)
    return _measure(entry, loaded, UNTUNED, weights, split, reporter)


def _merged(entry: Entry, folder: Path, device: str, split: str, reporter: Reporter) -> Entry:
    loaded = open_target(folder, device=device)
    if loaded.task != entry.run.info.task or loaded.classes != entry.run.info.classes:
        raise Refused(
            f"{folder} was not merged from {entry.path}: task or classes are others.",
            "Give the run that it was merged from.",
        )
    loaded.recipe = entry.run.load_recipe()
    weights = loaded.backbone.fingerprint
    kept = _kept(entry, MERGED, weights, split)
    return kept or _measure(entry, loaded, MERGED, weights, split, reporter)


def _kept(entry: Entry, name: str, weights: str, split: str) -> Entry | None:
    """What was measured before, if it is of these weights, these examples and these keys."""
    run = _place(entry, name)
    try:
        result = run.read_result()
    except GistError:
        return None
    same = result.get("of") == _of(entry, weights, split)
    return _entry(entry, run, result) if same else None


def _measure(
    entry: Entry, loaded: Loaded, name: str, weights: str, split: str, reporter: Reporter
) -> Entry:
    start = time.perf_counter()
    reporter.say(f"measuring the {name} network on {split} of {entry.task}")
    workload, measured = _figures(entry, loaded, split, name == UNTUNED, reporter)
    run = _place(entry, name)
    outputs = run.predictions_path if isinstance(workload, Classification) else run.answers_path
    workload.write_outputs(outputs(split), measured)
    kept = workload.result({split: measured})
    counts = entry.result.get("parameters") or {}
    result = {
        "metrics": {f"{split}/{k}": v for k, v in workload.scalars(measured).items()},
        "examples": {split: entry.result["examples"].get(split)},
        "method": name,
        "parameters": counts if name == MERGED else dict.fromkeys(counts, 0),
        "seconds": None,
        "evaluation_seconds": round(time.perf_counter() - start, 3),
        "of": _of(entry, weights, split),
        **kept,
    }
    run.write_result(result)
    return _entry(entry, run, result)


def _figures(
    entry: Entry, loaded: Loaded, split: str, untuned: bool, reporter: Reporter
) -> tuple[Workload, Measured]:
    recipe, pinned = entry.run.load_recipe(), entry.run.splits_path
    if loaded.backbone.modality == "text":
        texts, split = open_measured(loaded, recipe, pinned, split)
        return texts, measure_text(texts, loaded, split, None, untuned, reporter)
    loaded.run = entry.run  # whose data they are
    catalog = find_catalog(loaded, None, "compare")
    pictures = ImageClassification(recipe, Shelf(), pinned)
    pictures.catalog = catalog
    pictures.splits = {split: open_split(loaded, catalog, split, reporter=reporter)}
    plan = training_plan(recipe, pictures.metric)
    setting = Setting(plan, loaded.device, loaded.precision(), loaded.batch_size)
    return pictures, pictures.conclude(loaded.tuner, split, setting, reporter)


def _place(entry: Entry, name: str) -> RunDirectory:
    return RunDirectory(entry.run.path / "evaluations" / name)


def _of(entry: Entry, weights: str, split: str) -> dict[str, Any]:
    """What figures depend on."""
    section = entry.recipe["eval"]
    keys = ("protocol", "limit", "max_new_tokens", "positive")
    return {
        "weights": weights,
        "split": split,
        "examples": entry.fingerprint(split),
        "eval": {key: section.get(key) for key in keys},
    }


def _entry(entry: Entry, run: RunDirectory, result: dict[str, Any]) -> Entry:
    """A row of its own: nothing was trained by a method."""
    recipe = {**entry.recipe, "method": {"name": result["method"]}, "gist": None}
    recipe.pop("published", None)
    return Entry(run, recipe, result)
