"""`gist list methods|models`: what there is, read from the classes themselves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gistcli import registry
from gistcli.backbones.loading import supported_models
from gistcli.backbones.locating import EMBEDDED
from gistcli.errors import UnknownName, did_you_mean
from gistcli.methods.base import Method

KINDS = ("methods", "models")


def listing(kind: str) -> list[dict[str, Any]]:
    """Entries with name, summary, capabilities and options.

    Raises:
        UnknownName: no such kind.
    """
    if kind not in KINDS:
        raise UnknownName(f"There is no list of {kind!r}.", did_you_mean(kind, KINDS))
    return _methods() if kind == "methods" else _models()


def _methods() -> list[dict[str, Any]]:
    return [_method(registry.resolve("methods", n), n) for n in registry.names("methods")]


def _method(kind: type[Method], name: str) -> dict[str, Any]:
    properties = kind.model_json_schema().get("properties", {})
    options = {
        option: {
            "default": properties[option].get("default"),
            "description": field.description or "",
        }
        for option, field in kind.model_fields.items()
    }
    return {
        "name": name,
        "summary": kind.summary,
        "capabilities": asdict(kind().capabilities()),
        "options": options,
        "recommended": {m: asdict(r) for m, r in kind.recommended.items()},
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
