"""The recipes of a folder: their first comment line, their method, their tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gistcli.errors import GistError, RecipeError
from gistcli.recipe import yaml
from gistcli.recipe.loading import task_names


def list_recipes(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """An entry for each recipe below the folders; a damaged one says what is wrong with it."""
    return [_entry(str(path), _summary(path, tree)) for path, tree in _recipes(folders)]


def list_tasks(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """An entry for each task of each family file; the summary names the file.

    A file that changes the tasks of the one that it extends adds none.
    """
    return [
        _entry(str(task), f"{path} --task {task}")
        for path, tree in _recipes(folders)
        if isinstance(tree, dict) and isinstance(tree.get("tasks"), dict)
        for inherited in [_inherited(path, tree)]
        for task in tree["tasks"]
        if str(task) not in inherited
    ]


def _inherited(path: Path, tree: dict[Any, Any]) -> list[str]:
    """The tasks of the file that a recipe extends; none where that cannot be read."""
    try:
        return task_names(path.parent / str(tree["extends"])) if "extends" in tree else []
    except GistError:
        return []


def _entry(name: str, summary: str) -> dict[str, Any]:
    return {"name": name, "summary": summary, "capabilities": {}, "options": {}}


def _recipes(folders: Iterable[Path]) -> Iterator[tuple[Path, Any]]:
    for folder in folders:
        for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
            try:
                yield path, yaml.parse_file(path, str(path))[0]
            except RecipeError as error:
                yield path, error


def _summary(path: Path, tree: Any) -> str:
    if isinstance(tree, RecipeError):
        return f"cannot be read: {tree.message}"
    first = path.read_text(encoding="utf-8-sig").partition("\n")[0].strip()
    return first.lstrip("# ") if first.startswith("#") else ""
