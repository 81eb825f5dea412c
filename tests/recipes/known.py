"""The recipes that come with the package, and what they train."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from gistcli.data.benchmark import Benchmark
from gistcli.data.fewshot import FewShot
from gistcli.data.fgvc import Fgvc
from gistcli.data.vtab import Vtab
from gistcli.recipe import Recipe, load_recipe
from gistcli.recipe.loading import task_names
from gistcli.run.assembling import assemble

ROOT = Path(__file__).resolve().parents[2] / "recipes"
NAMES = [str(path.relative_to(ROOT)) for path in sorted(ROOT.rglob("*.yaml"))]
FAMILIES: dict[str, tuple[type[Benchmark], int]] = {
    "vtab": (Vtab, 41),
    "fgvc": (Fgvc, 21),
    "fewshot": (FewShot, 11),
}
OWN = ("fewshot/small.yaml",)
"""A measurement of ours on other sets, with settings of its own: no row of its family."""
OF_FAMILIES = [n for n in NAMES if n.partition("/")[0] in FAMILIES and n not in OWN]


@cache
def recipes(name: str) -> dict[str | None, Recipe]:
    """Every task of a recipe, resolved; None for a recipe without tasks."""
    tasks: list[str | None] = [*task_names(ROOT / name)] or [None]
    return {t: load_recipe(ROOT / name, sets=[f"task.name={t}"] if t else []) for t in tasks}


@cache
def _without_head(model: str, sections: str) -> int:
    tree = {"model": {"name": model}, "data": {"path": "none"}, **json.loads(sections)}
    counts = assemble(Recipe.model_validate(tree), 2, meta=True).parameters()
    return counts["method"] + counts["gist"]


def without_head(recipe: Recipe) -> int:
    """What method and gist token of a recipe train; each distinct network is built once."""
    sections = {"method": recipe.method, "gist": recipe.gist}
    return _without_head(recipe.model.name, json.dumps(sections, sort_keys=True))
