"""Configurations of a sweep: the points of a grid, and recipes with their values."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from gistcli.recipe import yaml
from gistcli.recipe.grid import Axis, Factor, Range
from gistcli.recipe.model import Recipe, flatten
from gistcli.recipe.problems import Problem, explain, refusal

Point = dict[str, Any]
_ATTEMPTS = 100
"""Draws for every configuration asked for, until those that there are count as exhausted."""


def points(axes: Sequence[Axis], recipe: Recipe, number: int | None = None) -> list[Point]:
    """The configurations of one method, each once, in the order of the grid.

    Args:
        axes: checked by `parse_grid`.
        recipe: with the method, and with its rates in place of nulls.
        number: how many to draw; None for the whole grid. The draws depend on key and number
            alone: every process, task and method sees the same. Fewer where there are no more.

    Raises:
        RecipeError: a Factor of something that is no number, a range of fractions for a whole one.
    """
    given = flatten(recipe.as_dict())
    mine = [a for a in axes if a.concerns(recipe.method["name"])]
    mine = [a for a in mine if recipe.gist is not None or not a.of_gist]
    listed = math.prod(len(a.values) for a in mine)
    if number is None or (listed <= number and not any(a.endless for a in mine)):
        chosen: Iterable[Sequence[Any]] = itertools.product(*(a.values for a in mine))
        drawn = ([(v, 0.0) for v in values] for values in chosen)
        number = listed
    else:
        drawn = ([_draw(a, i) for a in mine] for i in range(_ATTEMPTS * number))
    found: dict[str, Point] = {}
    for values in drawn:
        point = {
            key: _value(key, v, u, given)
            for axis, (v, u) in zip(mine, values, strict=True)
            for key in axis.keys
        }
        found.setdefault(canonical(point), point)
        if len(found) == number:
            break
    return list(found.values())


def canonical(point: Point) -> str:
    """A text that is equal for equal configurations."""
    return json.dumps(point, sort_keys=True)


def _draw(axis: Axis, number: int) -> tuple[Any, float]:
    """One of the axis' values, and where in it: both from one uniform figure in [0, 1)."""
    digest = hashlib.sha256(f"{axis.key} {number}".encode()).digest()
    position = len(axis.values) * int.from_bytes(digest[:6], "big") / 2**48
    return axis.values[int(position)], position % 1


def _value(key: str, value: Any, u: float, given: Mapping[str, Any]) -> Any:
    """A plain value; of a Range the one at u, low (high / low)^u."""
    if not isinstance(value, Factor | Range):
        return value
    base, method = given.get(key), given["method.name"]
    if isinstance(value, Factor):
        if not isinstance(base, int | float) or isinstance(base, bool):
            text = f"{value} multiplies a number, but with {method} it is {yaml.inline(base)}"
            raise refusal("--grid", [Problem(key, text)], {})
        return round(base * value.by) if isinstance(base, int) else _tidy(base * value.by, 12)
    bounds = (value.low, value.high)
    whole = all(isinstance(b, int) for b in bounds)
    if isinstance(base, int) and not whole:
        text = f"{value} has fractions, but with {method} it is a whole number"
        raise refusal("--grid", [Problem(key, text)], {})
    drawn = value.low * (value.high / value.low) ** u
    return round(drawn) if whole and not isinstance(base, float) else _tidy(drawn, 4)


def _tidy(value: float, digits: int) -> float:
    """Without the last digits, which say nothing: 3e-3 * 0.3 is 9e-4."""
    return float(f"{value:.{digits}g}")


# --- recipes with other values ----------------------------------------------------------------


def with_method(recipe: Recipe, name: str) -> Recipe:
    """The same recipe for another method: options and published figures of the first stay behind.

    What `optim` leaves null then means the recommendation of the new one.

    Raises:
        RecipeError: the rest of the recipe does not go with that method.
    """
    if name == recipe.method["name"]:
        return recipe
    tree = {**recipe.as_dict(), "method": {"name": name}, "published": None}
    return _validated(tree, f"--methods {name}")


def with_gist(recipe: Recipe, there: bool) -> Recipe:
    """The same recipe with a gist token, its own or that with all defaults, or without one.

    Published figures stay behind where that changes anything.

    Raises:
        RecipeError: the method does not go with what the recipe says of the token.
    """
    if there == (recipe.gist is not None):
        return recipe
    tree = {**recipe.as_dict(), "gist": {} if there else None, "published": None}
    return _validated(tree, f"--ablate gist with {recipe.method['name']}")


def with_values(recipe: Recipe, values: Mapping[str, Any], origin: str) -> Recipe:
    """The recipe with other values of some dotted keys.

    Args:
        recipe: is left as it is.
        values: by dotted key.
        origin: the flag that they come from, for messages.

    Raises:
        RecipeError: one that the key does not take; all problems are named.
    """
    tree = recipe.as_dict()
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return _validated(tree, f"{origin} with {recipe.method['name']}")


def _validated(tree: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise refusal(where, explain(error, tree), {}) from error
