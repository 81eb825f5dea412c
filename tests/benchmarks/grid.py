"""The small grid behind every method's recommended rates, on two sets that lie at hand.

Run: python tests/benchmarks/grid.py [--methods lora,ssf] [-o LEDGER.jsonl]

For each method: three learning rates, and further ones as long as the best is the largest or the
smallest; then, unless `--rates-only`, a lower head rate and a higher weight decay at the best of
them. A candidate is judged on validation alone, by the mean over the two sets; test is never read.
One line a run is appended to the ledger, and what stands there is not run again; `--show` prints
the table instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sets import MODEL, SETS

from gistcli import registry
from gistcli.data import Preprocess, load_split, open_catalog
from gistcli.errors import Diverged
from gistcli.evaluate.classify import predict, score
from gistcli.objectives import Classification
from gistcli.recipe import Recipe
from gistcli.run.assembling import assemble
from gistcli.run.settings import resolved, training_plan
from gistcli.train.engine import open_accelerator
from gistcli.train.loop import fit

STARTS = {"full": 1e-4, "linear": 3e-3, "vpt": 3e-2}
"""The middle one of the first three rates, where it is not 3e-3."""
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
HEAD, DECAY, EPOCHS = 3e-3, 1e-4, 10
Setting = dict[str, float]


@cache
def splits(name: str) -> tuple[Any, Any, list[str]]:
    """Training and validation split, decoded once."""
    path, shots, size = SETS[name]
    data = {"path": path, "shots": shots}
    recipe = Recipe.model_validate({"model": {"name": "x"}, "data": data})
    catalog = open_catalog(recipe.data, base=Path.cwd())
    config = json.loads((MODEL / "config.json").read_text())
    preprocessing = {**config.get("pretrained_cfg", config), "input_size": [3, size, size]}
    preprocess = Preprocess.from_config(preprocessing)
    train = load_split(catalog, "train", preprocess, train=True)
    return train, load_split(catalog, "val", preprocess, train=False), catalog.classes


def run(method: dict[str, Any], where: str, setting: Setting, seed: int = 0) -> dict[str, Any]:
    """One training and its figures on validation."""
    path, shots, size = SETS[where]
    recipe = resolved(
        Recipe.model_validate(
            {
                "seed": seed,
                "model": {"name": str(MODEL), "img_size": size},
                "data": {"path": path, "shots": shots},
                "method": method,
                "optim": setting,
                "train": {"epochs": EPOCHS},
                "eval": {"every": "none"},
            }
        )
    )
    train, val, classes = splits(where)
    assembly = assemble(recipe, classes)
    begin = time.perf_counter()
    accelerator = open_accelerator(torch.device("cpu"))
    fit(Classification(assembly.tuner), train, training_plan(recipe), accelerator)
    seconds = time.perf_counter() - begin
    figures = score(predict(assembly.tuner, val, 100), classes)
    return {"accuracy": figures["accuracy"], "loss": figures["loss"], "seconds": seconds}


class Ledger:
    """Runs that are done, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.rows = [json.loads(line) for line in lines]

    def get(self, method: dict[str, Any], where: str, setting: Setting) -> dict[str, Any]:
        """The row of a run, which is made where it is missing; a diverged one counts as 0."""
        key = {"method": method, "set": where, "setting": setting}
        for row in self.rows:
            if all(row[k] == v for k, v in key.items()):
                return row
        try:
            found = run(method, where, setting)
        except Diverged as error:
            found = {"accuracy": 0.0, "loss": 99.0, "seconds": 0.0, "error": str(error)}
        row = {**key, **found}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        sys.stderr.write(f"{method} {where} {setting} {found['accuracy']:.3f}\n")
        return row

    def judge(self, method: dict[str, Any], setting: Setting) -> tuple[float, float]:
        """Mean accuracy over the sets, and minus the mean loss to decide between equals."""
        rows = [self.get(method, where, setting) for where in SETS]
        return (
            sum(r["accuracy"] for r in rows) / len(rows),
            -sum(r["loss"] for r in rows) / len(rows),
        )


def search(ledger: Ledger, method: dict[str, Any], *, rates_only: bool) -> Setting:
    """The best rate, then the better of two head rates, then of two decays."""
    if method["name"] == "linear":
        return _best(ledger, method, [_setting(r, head=r) for r in LADDER[4:8]])
    middle = LADDER.index(STARTS.get(method["name"], 3e-3))
    low, high = middle - 1, middle + 1
    while True:
        best = _best(ledger, method, [_setting(r) for r in LADDER[low : high + 1]])
        if best["lr"] == LADDER[high] and high + 1 < len(LADDER):
            high += 1
        elif best["lr"] == LADDER[low] and low > 0:
            low -= 1
        else:
            break
    if rates_only:
        return best
    best = _best(ledger, method, [best, {**best, "head_lr": 1e-3}])
    return _best(ledger, method, [best, {**best, "weight_decay": 1e-2}])


def _setting(rate: float, head: float = HEAD) -> Setting:
    return {"lr": rate, "head_lr": head, "weight_decay": DECAY}


def _best(ledger: Ledger, method: dict[str, Any], candidates: list[Setting]) -> Setting:
    return max(candidates, key=lambda setting: ledger.judge(method, setting))


def table(ledger: Ledger) -> str:
    """Markdown: every method and setting, accuracy on validation by set, best in bold."""
    by_method: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in ledger.rows:
        options = {k: v for k, v in row["method"].items() if k != "name"}
        name = row["method"]["name"] + "".join(f" {k}={v}" for k, v in options.items())
        setting = row["setting"]
        rates = f"{setting['lr']:g} / {setting['head_lr']:g} / {setting['weight_decay']:g}"
        by_method[name][rates][row["set"]] = row["accuracy"]
    lines = [
        f"| method | lr / head lr / decay | {' | '.join(SETS)} | mean |",
        "|---|---|" + "---|" * 3,
    ]
    for name, settings in sorted(by_method.items()):
        means = {s: sum(v.values()) / len(v) for s, v in settings.items() if len(v) == len(SETS)}
        top = max(means.values(), default=0)
        for setting, mean in means.items():
            mark = "**" if mean == top else ""
            cells = [f"{100 * settings[setting][where]:.1f}" for where in SETS]
            lines.append(
                f"| {name} | {mark}{setting}{mark} | {' | '.join(cells)} | {100 * mean:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", help="names, or JSON objects with options, by semicolons")
    parser.add_argument("-o", "--output", type=Path, default=Path("grid.jsonl"))
    parser.add_argument("--rates-only", action="store_true")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    ledger = Ledger(options.output)
    if not options.show:
        asked = options.methods.split(";") if options.methods else registry.names("methods")
        for text in asked:
            method = json.loads(text) if text.startswith("{") else {"name": text}
            best = search(ledger, method, rates_only=options.rates_only)
            sys.stderr.write(f"== {text}: {best}\n")
    sys.stdout.write(table(ledger))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
