"""Grids of a sweep: what `--grid [METHODS:]KEY[+KEY]=V1,V2` may say, and what is wrong in it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gistcli import registry
from gistcli.errors import RecipeError, did_you_mean
from gistcli.recipe import yaml
from gistcli.recipe.model import MAY_CHANGE, Recipe
from gistcli.recipe.problems import Problem, every_key, method_options, refusal, section_keys

FORM = "expected [METHOD,...:]section.key[+section.key]=VALUE,VALUE"
DECIDED = {
    "seed": "--seeds and --search-seeds say it",
    "task.name": "--tasks says it",
    "method.name": "--methods says it",
    **dict.fromkeys(("data.folds", "data.fold"), "--folds says it"),
    **dict.fromkeys(
        ("eval.test", "eval.best_test", "data.include_val"), "a search never reads test"
    ),
    **dict.fromkeys(
        ("eval.metric", "data.path", "data.source", "data.subset", "data.classes", "data.splits",
         "data.val_fraction", "data.test_fraction", "data.split_seed", "data.columns",
         "data.group_by", "data.on_error"),
        "configurations are compared on the same examples by the same figure",
    ),
    **dict.fromkeys(
        ("eval.select", "train.patience"),
        "--refit has no validation data left, so that it could not be carried over",
    ),
}  # fmt: skip
"""Keys that no grid may hold, and why."""
GIST = "gist."
_FACTOR = re.compile(r"x(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)")


@dataclass(frozen=True)
class Factor:
    """A multiple of the recipe's own value, or of what the method recommends."""

    by: float

    def __str__(self) -> str:
        return f"x{self.by:g}"


@dataclass(frozen=True)
class Range:
    """Values between two bounds, uniform in their logarithm."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low!r}..{self.high!r}"


@dataclass(frozen=True)
class Axis:
    """One `--grid`.

    Attributes:
        key: dotted key of the recipe, or several joined by `+` that go together.
        values: plain ones, Factor or Range.
        methods: those that it is limited to; empty for all.
    """

    key: str
    values: tuple[Any, ...]
    methods: tuple[str, ...] = ()

    @property
    def keys(self) -> list[str]:
        """The dotted keys that take each value."""
        return self.key.split("+")

    def concerns(self, method: str) -> bool:
        """Whether it is a method's."""
        return not self.methods or method in self.methods

    @property
    def of_gist(self) -> bool:
        """Whether its keys are options of the gist token, which a recipe may not have."""
        return all(key.startswith(GIST) for key in self.keys)

    @property
    def endless(self) -> bool:
        """Whether its values cannot be listed."""
        return any(isinstance(v, Range) for v in self.values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that say the same."""
        values = [str(v) if isinstance(v, Factor | Range) else v for v in self.values]
        return {"key": self.key, "values": values, "methods": sorted(self.methods)}


def method_name(text: str) -> str:
    """The name of a method as recipes hold it: that of a file is absolute."""
    file = registry.split_file(text)
    return text if file is None else f"{os.path.abspath(file[0])}:{file[1]}"


def parse_axis(text: str) -> Axis:
    """One `--grid` text; whether key and methods exist is not looked at.

    Raises:
        RecipeError: it has another form.
    """
    left, equals, right = text.partition("=")
    limited, _, key = left.rpartition(":")
    methods = tuple(method_name(m.strip()) for m in limited.split(",")) if limited else ()
    key = "+".join(part.strip() for part in key.split("+"))
    if not equals or not all(all(part.split(".")) for part in key.split("+")):
        raise RecipeError(f"--grid {text}: {FORM}.", "E.g. --grid optim.lr=1e-3,3e-3")
    values, _ = yaml.parse(f"[{right}]", f"--grid {key}")
    if not values:
        raise RecipeError(f"--grid {text}: no values.", "E.g. --grid optim.lr=1e-3,3e-3")
    read = tuple(_read(value, key) for value in values)
    twice = [v for i, v in enumerate(read) if v in read[:i]]
    if twice:
        raise RecipeError(f"--grid {key}: {yaml.inline(twice[0])} stands there twice.")
    return Axis(key, read, methods)


def _read(value: Any, key: str) -> Any:
    """A Factor or a Range where the value is written as one."""
    if not isinstance(value, str):
        return value
    factor = _FACTOR.fullmatch(value)
    if factor:
        return Factor(float(factor[1]))
    low, dots, high = value.partition("..")
    if not dots:
        return value
    bounds = [yaml.parse(bound, f"--grid {key}")[0] for bound in (low, high)]
    numbers = all(isinstance(b, int | float) and not isinstance(b, bool) for b in bounds)
    if not numbers or not 0 < bounds[0] < bounds[1] < math.inf:
        raise RecipeError(
            f"--grid {key}: {value} is no range: expected two positive numbers, the smaller first."
        )
    return Range(*bounds)


def parse_grid(texts: Iterable[str], methods: Sequence[str], *, random: bool = False) -> list[Axis]:
    """All `--grid` texts of a sweep, against the methods that it is over.

    Args:
        texts: as they were typed.
        methods: names of all methods of the sweep.
        random: whether values are drawn (`--random`), so that ranges are allowed.

    Raises:
        RecipeError: all that is wrong, in one message.
    """
    axes: list[Axis] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            axis = parse_axis(text)
        except RecipeError as error:
            problems.append(Problem(text, error.message.partition(": ")[2].rstrip(".")))
            continue
        problems += [Problem(axis.key, p) for p in _problems(axis, axes, methods, random)]
        axes.append(axis)
    if problems:
        raise refusal("--grid", problems, {})
    return axes


def _problems(
    axis: Axis, others: Sequence[Axis], methods: Sequence[str], random: bool
) -> Iterator[str]:
    absent = [m for m in axis.methods if m not in methods]
    for name in absent:
        yield f"{name!r} is not among the methods of this sweep. {did_you_mean(name, methods)}"
    concerned = [m for m in axis.methods or methods if m not in absent]
    for key in axis.keys:
        refused = DECIDED.get(key) or _without_effect(key)
        unknown = None if refused else _unknown(key, concerned)
        if refused or unknown:
            yield _of(key, axis, str(refused or unknown))
        same = [a for a in others if key in a.keys]
        twice = [m for m in concerned if any(a.concerns(m) for a in same)]
        if twice or axis.keys.count(key) > 1:
            yield _of(key, axis, f"given twice for {', '.join(twice or concerned)}")
    if not axis.of_gist and any(key.startswith(GIST) for key in axis.keys):
        yield "options of the gist token go together with one another only"
    if axis.endless and not random:
        yield "a range such as 1e-4..1e-2 needs --random N, which draws N configurations"


def _of(key: str, axis: Axis, text: str) -> str:
    """The text, with its key in front where the axis has several."""
    return text if key == axis.key else f"{key}: {text}"


def _without_effect(key: str) -> str | None:
    same = any(key == m or key.startswith(f"{m}.") for m in MAY_CHANGE)
    return "does not change what a run finds" if same else None


def _unknown(key: str, methods: Sequence[str]) -> str | None:
    """What is wrong with a key that a recipe, or one of these methods, does not have."""
    *section, name = key.split(".")
    if section == ["method"]:
        return _no_option(name, methods)
    if section and name in section_keys(section):
        return None
    options = [f"method.{name}"] if any(name in method_options(m) for m in methods) else []
    elsewhere = [k for k in every_key() if k.rpartition(".")[2] == name] + options
    if elsewhere:
        return f"unknown key. Did you mean {' or '.join(elsewhere)}?"
    if section and section_keys(section):
        return f"unknown key. {did_you_mean(name, section_keys(section))}"
    return f"unknown key. {did_you_mean((section or [name])[0], Recipe.model_fields)}"


def _no_option(name: str, methods: Sequence[str]) -> str | None:
    lacking = [m for m in methods if name not in method_options(m)]
    having = [m for m in methods if m not in lacking]
    if not lacking:
        return None
    if having:
        limited = f"--grid {','.join(having)}:method.{name}=..."
        return f"no option of {', '.join(lacking)}; limit it to those that have it: {limited}"
    known = {option for m in methods for option in method_options(m)}
    return f"no option of {', '.join(lacking)}. {did_you_mean(name, known)}"
