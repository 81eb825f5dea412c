"""From what pydantic found to lines a user can act on: where, what was found, what is expected."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gistcli import registry
from gistcli.errors import GistError, RecipeError, did_you_mean
from gistcli.recipe.model import Recipe

FILE_KEYS = ("extends", "tasks")
"""Keys of a file that are gone once it is loaded."""

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "dict": "a mapping of keys",
    "model": "a mapping of keys",
    "list": "a list",
    "tuple": "a list",
}
_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
    "string_too_short": "a text that is not empty",
}
_EXPECTED_AT = {
    "gist.interaction": "auto, none, bkld, fkld, rkld, bernoulli, mse, cosine, or NAME: weight of "
    "several, with weights above 0",
    "model.img_size": "a whole number, or [height, width]",
    "train.device": "auto, cpu, mps, cuda or cuda:N",
    "train.max_time": "seconds, or a text such as 90m or 2h",
}
_MISSING = {
    "model.name": "missing; give a folder or a name, here or as --model",
    "data.path": "missing; give a folder, a file or a source name, here or as --data",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe: the dotted key and a sentence about it."""

    key: str
    text: str
    missing: bool = False


def explain(error: ValidationError, values: Mapping[str, Any]) -> list[Problem]:
    """The problems that a validation of `values` found, one per key."""
    located = [(_locate(e, values), e) for e in error.errors(include_url=False)]
    return [
        _problem(path, [e for _, e in same], values)
        for path, same in groupby(located, key=lambda pair: pair[0])
    ]


def refusal(where: str, problems: Sequence[Problem], places: Mapping[str, str]) -> RecipeError:
    """The one error that lists all problems, each with the line or flag it comes from."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"  {p.key}{_place(p.key, where, places)}: {p.text}" for p in problems]
    hint = "`gist schema` prints every key with its meaning and bounds."
    return RecipeError("\n".join([f"{where}: {count}:", *lines]), hint)


def _place(key: str, where: str, places: Mapping[str, str]) -> str:
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        origin = places.get(".".join(parts[:n]))
        if origin is not None:
            line = origin.removeprefix(f"{where}:")
            return f" (line {line})" if line != origin else f" ({origin})"
    return ""


def _locate(error: ErrorDetails, values: Any) -> tuple[str | int, ...]:
    """The part of pydantic's location that is a path in `values`: no names of union members."""
    if error["type"] == "missing":
        return error["loc"]
    path: list[str | int] = []
    for step in error["loc"]:
        inside = isinstance(values, Mapping) and step in values
        if not inside and not (isinstance(values, list) and isinstance(step, int)):
            break
        values = values[step]
        path.append(step)
    if not path or (path == ["method"] and error["loc"][1:] == ("name",)):
        return error["loc"]
    return tuple(path)


def _problem(
    path: tuple[str | int, ...], errors: Sequence[ErrorDetails], values: Mapping[str, Any]
) -> Problem:
    key = ".".join(map(str, path))
    kinds = {e["type"] for e in errors}
    if "missing" in kinds:
        return Problem(key, _MISSING.get(key, "missing"), missing=True)
    if "extra_forbidden" in kinds:
        return Problem(key, _unknown(path, values))
    found = _shown(errors[0]["input"])
    # pydantic puts "Value error, " before what a method's own validator says
    messages = [e["msg"].removeprefix("Value error, ") for e in errors if _expected(key, e) is None]
    custom = list(dict.fromkeys(messages))
    if custom:
        return Problem(key, "; ".join(custom))
    choices = [c for e in errors if e["type"] == "literal_error" for c in _choices(e)]
    if choices and len(errors) == 1:
        return Problem(key, f"found {found}. {did_you_mean(str(errors[0]['input']), choices)}")
    expected = dict.fromkeys(str(_expected(key, e)) for e in errors)
    return Problem(key, f"found {found}, expected {' or '.join(expected)}")


def _expected(key: str, error: ErrorDetails) -> str | None:
    """What a value should have been; None where the error's own message says it all."""
    kind = error["type"]
    if key in _EXPECTED_AT:
        return _EXPECTED_AT[key]
    if kind == "literal_error":
        return str(error["ctx"]["expected"])
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**error["ctx"])
    family = kind.partition("_")[0]
    by_type = kind.endswith(("_type", "_parsing", "_from_float", "_number"))
    return _EXPECTED.get(family) if by_type else None


def _choices(error: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown(path: tuple[str | int, ...], values: Mapping[str, Any]) -> str:
    """The sentence about a key that does not exist."""
    name, section = str(path[-1]), [str(p) for p in path[:-1]]
    if section == ["method"]:
        method = values["method"].get("name", "gift")
        return f"no option of {method}. {did_you_mean(name, method_options(method))}"
    known = section_keys(section)
    elsewhere = [k for k in every_key() if k.rpartition(".")[2] == name]
    if elsewhere and name not in known:
        return f"unknown key. Did you mean {' or '.join(elsewhere)}?"
    return f"unknown key. {did_you_mean(name, known)}"


def method_options(name: str) -> list[str]:
    """The option names of a method; empty where there is no such method."""
    try:
        return list(registry.resolve("methods", name).model_fields)
    except GistError:
        return []


def section_keys(section: Iterable[str]) -> list[str]:
    """The keys that may stand below a path such as ["optim"]; the top level for an empty path."""
    model: type[BaseModel] | None = Recipe
    for step in section:
        field = model.model_fields.get(step) if model else None
        model = _section_class(step, field.annotation) if field else None
    keys = [field.alias or key for key, field in model.model_fields.items()] if model else []
    return [*keys, *FILE_KEYS] if model is Recipe else keys


def every_key() -> Iterator[str]:
    """`section.key` for every section."""
    for name in Recipe.model_fields:
        yield from (f"{name}.{key}" for key in section_keys([name]))


def _section_class(name: str, annotation: Any) -> type[BaseModel] | None:
    if name in registry.names("sections"):
        found: type[BaseModel] = registry.resolve("sections", name)
        return found
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
