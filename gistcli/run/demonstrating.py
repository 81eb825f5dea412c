"""`gist demo`: one recipe beside a linear probe, merged, verified and drawn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gistcli.artifacts.predictions import read_csv
from gistcli.data import open_catalog, read_image
from gistcli.recipe import Recipe
from gistcli.recipe.points import with_method, with_values
from gistcli.reporting import SILENT, Reporter
from gistcli.run.demonstrating_prefixes import demonstrate_prefixes
from gistcli.run.evaluation import evaluate
from gistcli.run.exporting import merge
from gistcli.run.finetuning import finetune
from gistcli.run.picturing import visualize

PICTURES = 10


def demo(recipe: Recipe, output: Path, *, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Train a recipe and a linear probe of the same settings, and show everything that follows.

    Of the recipe of a hypernetwork: see `demonstrate_prefixes`.

    Args:
        recipe: a method that merges.
        output: folder that receives two runs, the merged weights and the maps; it can be the
            folder of an earlier demo, which is then repeated where it was not finished.
        reporter: gets all talk.

    Returns:
        JSON: results of both, their difference on the same test examples, and the files to look at.
    """
    if recipe.hyper is not None:
        return demonstrate_prefixes(recipe, output, reporter=reporter)
    start = time.perf_counter()
    name = recipe.method["name"]
    reporter.say(f"1/4  {name} and a linear probe on {Path(recipe.data.path).name}")
    runs = {n: _train(_with_method(recipe, n), output / n, reporter) for n in (name, "linear")}
    reporter.say("2/4  merging into plain weights, and reading them back")
    merged = merge(output / name, output / "merged", reporter=reporter)
    reporter.say("3/4  the merged weights, evaluated like any other model")
    checked = evaluate(output / "merged", data=recipe.data.path, reporter=reporter)
    reporter.say("4/4  cluster maps")
    maps = {}
    if recipe.build_method().capabilities().clusters:
        pictures = _write_pictures(recipe, output / "pictures")
        maps = visualize(output / name, pictures, output / "maps", reporter=reporter)
    return {
        "output": str(output),
        "runs": runs,
        "difference": _difference(output / name, output / "linear"),
        "evaluated": checked["metrics"],
        "merged": {k: v for k, v in merged.items() if k != "per_tensor"},
        "files": _files(output, name, maps),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _with_method(recipe: Recipe, name: str) -> Recipe:
    """The recipe itself, or its linear probe: the same data, steps and head rate."""
    if name == recipe.method["name"]:
        return recipe
    own = dict.fromkeys(("gist", "optim.lr", "optim.weight_decay", "optim.clip_norm"))
    return with_method(with_values(recipe, own, "gist demo"), name)


def _train(recipe: Recipe, output: Path, reporter: Reporter) -> dict[str, Any]:
    result = finetune(recipe, output=output, reporter=reporter)
    kept = ("run", "metrics", "intervals", "examples", "parameters", "seconds")
    return {key: result[key] for key in kept}


def _difference(one: Path, other: Path) -> dict[str, float]:
    """Test examples that only one of the two got right (the rest tell nothing about them)."""
    right = [
        np.array([row["correct"] == "1" for row in read_csv(p / "predictions" / "test.csv")])
        for p in (one, other)
    ]
    return {
        "points": round(100 * float(right[0].mean() - right[1].mean()), 2),
        "only_first": int((right[0] & ~right[1]).sum()),
        "only_second": int((right[1] & ~right[0]).sum()),
    }


def _write_pictures(recipe: Recipe, folder: Path) -> list[Path]:
    """A few test examples as image files, one a class, large enough to be looked at."""
    catalog = open_catalog(recipe.data, base=Path.cwd())
    records = {record.label: record for record in reversed(catalog.splits["test"])}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for label, record in sorted(records.items())[:PICTURES]:
        picture = read_image(record.source)
        scale = max(1, 128 // min(picture.size))
        path = folder / f"{label}.png".replace("/", "-")
        size = (picture.width * scale, picture.height * scale)
        picture.resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def _files(output: Path, name: str, maps: dict[str, Any]) -> dict[str, str]:
    files = {
        "cluster maps": maps.get("gallery", ""),
        "learning curves": str(output / name / "plots" / "curves.png"),
        "confusion matrix": str(output / name / "plots" / "confusion-test.png"),
        "every test prediction": str(output / name / "predictions" / "test.csv"),
        "merged weights": str(output / "merged" / "model.safetensors"),
        "model card": str(output / "merged" / "README.md"),
        "the whole run": str(output / name),
    }
    return {what: path for what, path in files.items() if path}
