"""`gist list`: what there is, read from the classes and files themselves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gistcli import registry
from gistcli.backbones.loading import EMBEDDED, supported_models
from gistcli.errors import GistError, UnknownName, did_you_mean
from gistcli.methods.base import Method
from gistcli.recipe import load_recipe

KINDS = ("methods", "models", "recipes")


def listing(kind: str) -> list[dict[str, Any]]:
    """Entries with name, summary, capabilities and options.

    Raises:
        UnknownName: no such kind.
    """
    if kind not in KINDS:
        raise UnknownName(f"There is no list of {kind!r}.", did_you_mean(kind, KINDS))
    return {"methods": _methods, "models": _models, "recipes": _recipes}[kind]()


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


def _recipes(root: Path = Path("recipes")) -> list[dict[str, Any]]:
    return [
        {"name": str(p), "summary": _first_comment(p), "capabilities": {}, "options": _facts(p)}
        for p in sorted(root.rglob("*.yaml"))
    ]


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[0].lstrip("# ").strip() if lines and lines[0].startswith("#") else ""


def _facts(path: Path) -> dict[str, Any]:
    try:
        recipe = load_recipe(path)
    except GistError as error:
        return {"problem": error.message}
    return {
        "method": recipe.method["name"],
        "model": recipe.model.name,
        "data": recipe.data.path,
    }
