"""The comparison of HyperLlama on `gist_llama_nano`, by seeds: `gist demo` of the quickstart.

Run: python -m tests.benchmarks.hyper RUNS -o tests/benchmarks/hyper.md --ship
     --picture recipes/images/prefix-tuning.png

RUNS is a folder for the demos: what is there already is not trained again. --ship puts the first
seed's runs into tests/hyper/checkpoints. One thread; some ten minutes of a processor for
each seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from gistcli import run
from gistcli.atomic import atomic_file, write_json
from gistcli.recipe import load_recipe
from gistcli.run.demonstrating_prefixes import draw_tuning
from tests.benchmarks.tables import header
from tests.hyper import nano

QUICKSTART = Path(__file__).parents[2] / "recipes" / "hyper" / "quickstart.yaml"
SHIPPED = {"hyper": "frozen", "adapted": "adapted", "shared": "shared"}
"""Run of a demo -> its place among the checkpoints."""
Found = Sequence[Mapping[str, Any]]
"""What the demos returned, by seed."""


def ship(path: Path, folder: Path) -> None:
    """Of a run what others go on from, without the paths of the machine that made it."""
    folder.mkdir(exist_ok=True)
    with atomic_file(folder / "tuner.safetensors") as file:
        file.write_bytes((path / "tuner.safetensors").read_bytes())
    info = json.loads((path / "tuner.json").read_text())
    recipe = yaml.safe_load((path / "recipe.yaml").read_text())
    for hyper in (info["method"].get("hyper"), recipe["hyper"]):
        if hyper is not None:
            hyper["init"] = None
    info["backbone"]["path"] = None
    recipe["output"]["dir"] = "auto"
    write_json(folder / "tuner.json", info)
    with atomic_file(folder / "recipe.yaml") as file:
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))


def cell(values: Sequence[float]) -> str:
    """The mean in %, and in brackets what it is of."""
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * statistics.mean(values):.1f} ({each})"


def scores(found: Found) -> list[str]:
    """A row for what stands in front of a query, a column for each number of steps."""
    steps = max((list(row["scores"]) for row in found[0]["rows"]), key=len)
    lines = list(header(("in front of a query", *(f"{step} steps" for step in steps))))
    for place, row in enumerate(found[0]["rows"]):
        of_seeds = [one["rows"][place]["scores"] for one in found]
        cells = [cell([s[step] for s in of_seeds]) if step in row["scores"] else ""
                 for step in steps]  # fmt: skip
        lines.append(f"| {row['front']} | {' | '.join(cells)} |")
    return lines


def orderings(found: Found) -> list[str]:
    """The differences, and what each seed says of them."""
    names = {row["key"]: row["front"] for row in found[0]["rows"]}
    lines = list(header(("above", "below", "steps", "points", "by seed")))
    for place, one in enumerate(found[0]["orderings"]):
        of_seeds = [each["orderings"][place] for each in found]
        verdicts = ", ".join(each["verdict"] for each in of_seeds)
        points = cell([each["difference"] for each in of_seeds])
        above, below = names[one["above"]], names[one["below"]]
        lines.append(f"| {above} | {below} | {one['steps']} | {points} | {verdicts} |")
    return lines


def seconds(found: Found) -> list[str]:
    """Of training."""
    lines = list(header(("run", "steps", "seconds")))
    for name, one in found[0]["runs"].items():
        each = ", ".join(f"{demo['runs'][name]['seconds']:.0f}" for demo in found)
        lines.append(f"| {name} | {one['steps']:,} | {each} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ship", action="store_true", help="into tests/hyper/checkpoints")
    parser.add_argument("-o", "--output", type=Path, help="a Markdown file; else shown only")
    parser.add_argument("--picture", type=Path, help="a PNG of prefix tuning")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = options.runs.resolve()
    found = [
        run.demo(load_recipe(QUICKSTART, sets=[f"seed={seed}"]), runs / str(seed))
        for seed in options.seeds
    ]
    for name, place in SHIPPED.items() if options.ship else ():
        ship(runs / str(options.seeds[0]) / name, nano.CHECKPOINTS / place)
    if options.picture is not None:
        draw_tuning([one["rows"] for one in found], options.picture, found[0]["metric"])
    parts = (scores(found), orderings(found), seconds(found))
    text = "\n".join(["# Prefixes of held-out tasks on gist_llama_nano", "",
                      *(f"{line}" for part in parts for line in (*part, ""))])  # fmt: skip
    if options.output is not None:
        options.output.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
