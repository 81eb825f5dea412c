"""Hypernetworks on `gist_llama_nano`, by seeds: held-out tasks, and prefixes tuned further.

Run: python -m tests.benchmarks.hyper RUNS -o tests/benchmarks/hyper.md --ship

RUNS is a folder for the runs: what is there already is not trained again. --ship puts the first
seed's hypernetworks into tests/hyper/checkpoints. One thread; some five minutes of a processor for
each seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from gistcli import run
from gistcli.atomic import atomic_file, write_json
from gistcli.backbones.prefix import Prefix
from gistcli.evaluate.language.held_out import IN_CONTEXT, OWN, WRONG_TASK, ZERO_SHOT
from gistcli.recipe import load_recipe
from tests.benchmarks.tables import header
from tests.hyper import nano

QUICKSTART = Path(__file__).parents[2] / "recipes" / "hyper" / "quickstart.yaml"
FROZEN = ("train.max_steps=1400",)
ADAPTED = ("hyper.adapt_downstream=true", "optim.lr=3e-3", "train.max_steps=400")
SHARED = (
    "method={name: prefix, length: 8}", "hyper=null", "task.type=hypertuning",
    "optim.lr=1e-2", "train.max_steps=1000", "train.batch_size=8",
)  # fmt: skip
KINDS = ("frozen", "adapted")
CONDITIONS = {
    ZERO_SHOT: "nothing in front",
    WRONG_TASK: "the prefix of another task",
    OWN: "the prefix of 10 examples",
    IN_CONTEXT: "10 examples, read by the network alone",
}
AT = (0, 5, 10, 20, 50)
TUNED = 64
"""Held-out tasks whose prefixes are tuned."""
Figures = dict[str, float]


def train(folder: Path, seed: int) -> None:
    """Three runs: a hypernetwork, the same with queries adapted to it, and one prefix for all."""
    frozen = folder / f"frozen-{seed}"
    changes = {
        frozen: FROZEN,
        folder / f"adapted-{seed}": (*ADAPTED, f"hyper.init={frozen}"),
        folder / f"shared-{seed}": SHARED,
    }
    for path, sets in changes.items():
        run.finetune(load_recipe(QUICKSTART, sets=[*sets, f"seed={seed}"]), output=path)


def measured(folder: Path, kind: str, seed: int) -> tuple[Figures, dict[str, Figures]]:
    """Accuracies on held-out tasks, and those of prefix tuning by start and step."""
    path = folder / f"{kind}-{seed}"
    result = json.loads((path / "result.json").read_text())
    figures = {
        name: result["metrics"]["test/accuracy" + ("" if key == OWN else f"_{key}")]
        for key, name in CONDITIONS.items()
    }
    figures["steps"], figures["seconds"] = result["steps"], result["seconds"]
    stored = load_file(folder / f"shared-{seed}" / "tuner.safetensors")
    tuning = nano.Tuning.of(*nano.opened(path), TUNED)
    starts = tuning.starts(seed, Prefix(stored["keys"], stored["values"]))
    curves = {
        name: {str(step): value for step, value in tuning.curve(start, AT).items()}
        for name, start in starts.items()
    }
    return figures, curves


def ship(path: Path, folder: Path) -> None:
    """Of a run what `gist compress` needs, without the paths of the machine that made it."""
    with atomic_file(folder / "tuner.safetensors") as file:
        file.write_bytes((path / "tuner.safetensors").read_bytes())
    info = json.loads((path / "tuner.json").read_text())
    recipe = yaml.safe_load((path / "recipe.yaml").read_text())
    for tree in (info["method"], recipe):
        tree["hyper"]["init"] = None
    info["backbone"]["path"] = None
    recipe["output"]["dir"] = "auto"
    write_json(folder / "tuner.json", info)
    with atomic_file(folder / "recipe.yaml") as file:
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))


def cell(values: Sequence[float]) -> str:
    """The mean, and in brackets what it is of."""
    digits = 0 if max(values) > 1 else 3
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ({each})"


def table(first: str, columns: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """A column for each name, with a row for each figure: over the seeds."""
    rows = list(next(iter(columns.values()))[0])
    lines = [
        f"| {row} | {' | '.join(cell([each[row] for each in c]) for c in columns.values())} |"
        for row in rows
    ]
    return [*header((first, *columns)), *lines, ""]


def report(found: Mapping[str, Sequence[tuple[Figures, dict[str, Figures]]]]) -> str:
    """All tables."""
    lines = ["# Hypernetworks on gist_llama_nano", ""]
    lines += table("held-out tasks", {kind: [f for f, _ in each] for kind, each in found.items()})
    for kind, each in found.items():
        starts = {name: [curves[name] for _, curves in each] for name in each[0][1]}
        lines += [f"## Prefix tuning, {kind}: steps, by start", "", *table("steps", starts)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ship", action="store_true", help="into tests/hyper/checkpoints")
    parser.add_argument("-o", "--output", type=Path, help="a Markdown file; else shown only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        train(options.runs.resolve(), seed)
    found = {kind: [measured(options.runs, kind, seed) for seed in options.seeds] for kind in KINDS}
    for kind in KINDS if options.ship else ():
        ship(options.runs / f"{kind}-{options.seeds[0]}", nano.CHECKPOINTS / kind)
    text = report(found)
    if options.output is not None:
        options.output.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
