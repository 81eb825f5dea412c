"""`gist list methods|models|sources`: what there is, read from the classes themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from gistcli import registry
from gistcli.backbones.loading import supported_models
from gistcli.backbones.locating import EMBEDDED
from gistcli.errors import UnknownName, did_you_mean
from gistcli.methods.base import Method
from gistcli.methods.choices import choices

KINDS = ("methods", "models", "sources")


def listing(kind: str) -> list[dict[str, Any]]:
    """Entries with name, summary, capabilities and options.

    Raises:
        UnknownName: no such kind.
    """
    if kind not in KINDS:
        raise UnknownName(f"There is no list of {kind!r}.", did_you_mean(kind, KINDS))
    return {"methods": _methods, "models": _models, "sources": _sources}[kind]()


def _methods() -> list[dict[str, Any]]:
    return [_method(registry.resolve("methods", n), n) for n in registry.names("methods")]


def _method(kind: type[Method], name: str) -> dict[str, Any]:
    properties = kind.model_json_schema().get("properties", {})
    countable = choices(kind)
    options = {
        option: {
            "default": properties[option].get("default"),
            "choices": countable.get(option),
            "description": " ".join((field.description or "").split()),
        }
        for option, field in kind.model_fields.items()
    }
    return {
        "name": name,
        "summary": kind.summary,
        "label": kind().label(),
        "capabilities": asdict(kind().capabilities()),
        "options": options,
        "variants": list(_variants(kind)),
        "recommended": {m: asdict(r) for m, r in kind.recommended.items()},
    }


def _variants(kind: type[Method]) -> Iterator[dict[str, Any]]:
    """The values of flags and choices with which a method can other things, or is called so."""
    plain = kind()
    before = asdict(plain.capabilities())
    for option, values in choices(kind).items():
        for value in values:
            other = kind(**{option: value})
            able = {k: v for k, v in asdict(other.capabilities()).items() if v != before[k]}
            if able or other.label() != plain.label():
                yield {
                    "option": option,
                    "value": value,
                    "label": other.label(),
                    "capabilities": able,
                }


def _models() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "summary": "in the package" if name in EMBEDDED else "timm",
            "capabilities": {},
            "options": {},
        }
        for name in supported_models()
    ]


def _sources() -> list[dict[str, Any]]:
    """Kinds of data for `data.source`, with the sets that `data.subset` may name."""
    return [_source(name, registry.resolve("sources", name)) for name in registry.names("sources")]


def _source(name: str, kind: Any) -> dict[str, Any]:
    summary = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    sets = [
        {"name": task.name, "group": task.group, "classes": task.classes, "examples": task.counts}
        for task in getattr(kind, "tasks", ())
    ]
    return {
        "name": name,
        "summary": " ".join(summary.split()),
        "capabilities": {},
        "options": {},
        "sets": sets,
    }
