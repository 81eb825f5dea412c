"""What a reader of a table has to know before believing it, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gistcli.artifacts.rundir import read_json
from gistcli.errors import WeightsError
from gistcli.evaluate.paired import RESAMPLES
from gistcli.recipe import yaml
from gistcli.run.collecting import Entry, listed
from gistcli.run.rows import Row, configuration, differing

SETTINGS = ("model.", "data.", "train.", "eval.")
"""Keys that a fair comparison keeps equal; method and optimiser are what is compared."""
SMALL = 500
"""With fewer examples a rate of 80 % is uncertain by more than 3.5 points."""
_SHOWN = 4


def about_rows(rows: Sequence[Row], tasks: Sequence[str], split: str) -> list[str]:
    """What differs between rows besides the method, and what is missing."""
    entries = [entry for row in rows for entry in row.entries]
    notes = [
        f"{row.name} lacks {listed([t for t in tasks if t not in row.tasks])}: its means over "
        "these are left out"
        for row in rows
        if any(task not in row.tasks for task in tasks)
    ]
    counts = {len(runs) for row in rows for runs in row.tasks.values()}
    if len(counts) > 1:
        low, high = min(counts), max(counts)
        notes.append(f"figures rest on {low} to {high} seeds; 'seeds' says how many a row has")
    if any(entry.tried is None for entry in entries):
        notes.append("how many configurations were tried is only known of the runs of a sweep")
    notes += _other_training(rows, tasks)
    apart = [task for task in tasks if len(_fingerprints(rows, task, split)) > 1]
    if apart:
        notes.append(f"runs were measured on different {split} examples: {listed(apart)}")
    chosen = [e.path for e in entries if e.result.get("selected_on") == split]
    if chosen:
        notes.append(f"selected on {split}, the split that is shown: weights of {listed(chosen)}")
    notes += _settings(rows, tasks) + _devices(entries)
    return notes


def about_differences(
    found: Sequence[Mapping[str, Any]], rows: Sequence[Row], metric: str
) -> list[str]:
    """What the intervals cover, and what they do not."""
    if not found:
        several = len(rows) > 1 and not metric.endswith("/accuracy")
        return ["paired differences exist for accuracy only"] if several else []
    cells = [cell for one in found for cell in one["tasks"].values()]
    notes = [
        f"differences: row minus {found[0]['reference']} on the same examples, joined by name and "
        "averaged over seeds; the interval is a 95 % percentile bootstrap over examples "
        f"({RESAMPLES:,} resamples, each task on its own): it covers other examples, not other "
        "seeds"
    ]
    if any(cell["interval_with_seeds"] for cell in cells):
        notes.append(
            "'with seeds' adds the error of the mean over the seeds (Student's t): it covers other "
            "examples and other seeds, and with two or three seeds it is wide because they say "
            "little"
        )
    if any(cell["interval_with_seeds"] is None for cell in cells):
        notes.append("one seed: a gap can turn with another, which no interval here shows")
    few = {task: c["examples"] for one in found for task, c in one["tasks"].items()}
    small = [f"{task} ({n})" for task, n in few.items() if n < SMALL]
    if small:
        notes.append(f"few test examples, so rough intervals: {listed(small)}")
    if len(cells) > 1:
        notes.append(
            f"{len(cells)} differences by task: where there is none, about one interval in twenty "
            "excludes 0 all the same"
        )
    return notes


def about_ablations(ablations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which rows are pairs, and what their intervals cover."""
    notes = []
    for section, found in ablations.items():
        pairs = [f"{one['row']} minus {one['reference']}" for one in found["pairs"]]
        notes.append(
            f"pairs that differ in {section} alone: {listed(pairs)}; their intervals are those "
            "'with seeds' where there are several, over examples alone else"
        )
        if found["mean"]:
            notes.append(
                "the mean of the pairs draws examples and seeds once for all of them: what one "
                "example does to every method does not average out"
            )
    return notes


def _other_training(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    """Tasks on which rows were trained on different examples under the same seed."""
    different = []
    for task in tasks:
        found: dict[Any, set[str]] = {}
        for row in rows:
            for seeds, entry in row.tasks.get(task, {}).items():
                fingerprint = entry.fingerprint("train")
                if fingerprint is not None:
                    found.setdefault(seeds, set()).add(fingerprint)
        if any(len(fingerprints) > 1 for fingerprints in found.values()):
            different.append(task)
    if not different:
        return []
    return [
        f"rows were trained on different examples with the same seed ({listed(different)}): a "
        "difference there is one of method and data"
    ]


def _fingerprints(rows: Sequence[Row], task: str, split: str) -> set[str | None]:
    return {e.fingerprint(split) for row in rows for e in row.tasks.get(task, {}).values()}


def _settings(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    """Keys of SETTINGS in which rows differ on the same task, with the values of each row."""
    keys: dict[str, str] = {}
    for task in tasks:
        firsts = {r.name: next(iter(r.tasks[task].values())) for r in rows if task in r.tasks}
        flat = {name: configuration(entry) for name, entry in firsts.items()}
        for key in differing(flat.values()):
            if key.startswith(SETTINGS):
                keys.setdefault(key, _values(flat, key))
    return [f"rows differ in {key}: {values}" for key, values in keys.items()]


def _values(flat: Mapping[str, Mapping[str, Any]], key: str) -> str:
    found: dict[str, list[str]] = {}
    for name, configured in flat.items():
        found.setdefault(yaml.inline(configured[key]), []).append(name)
    parts = [f"{value} ({listed(names)})" for value, names in list(found.items())[:_SHOWN]]
    return ", ".join(parts) + (" and others" if len(found) > _SHOWN else "")


def _devices(entries: Sequence[Entry]) -> list[str]:
    """Whether seconds and memory were measured on one kind of machine."""
    device = _distinct(entries, lambda e: f"{e.get('device')} {e.get('device_name')}".strip())
    threads = _distinct(entries, lambda e: str(e.get("threads")))
    notes = []
    if len(device) > 1:
        notes.append(f"seconds and memory are of different devices: {listed(device)}")
    elif len(threads) > 1:
        notes.append(f"seconds are of different numbers of threads: {listed(threads)}")
    return notes


def _distinct(entries: Sequence[Entry], of: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """What the environments of the runs say; those that cannot be read say nothing."""
    found = []
    for entry in entries:
        try:
            found.append(of(read_json(entry.run.environment_path)))
        except WeightsError:
            continue
    return sorted(set(found))
