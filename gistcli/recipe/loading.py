"""From a file, the files it extends, a chosen task and flags to one validated recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gistcli.errors import NotFound, RecipeError, did_you_mean
from gistcli.recipe import yaml
from gistcli.recipe.model import DEFAULT_METHOD, Recipe, flatten
from gistcli.recipe.problems import Problem, explain, refusal

Tree = dict[str, Any]
_PATHS = {
    ("model", "name"),
    ("data", "path"),
    ("data", "chat_template"),
    ("output", "dir"),
    ("hyper", "init"),
    ("method", "init"),
    ("method", "name"),
    ("method", "weights"),
}
_NO_PATHS = {"auto", "tokenizer", "chatml"}
"""Words that stand for something else, whatever lies beside the recipe under that name."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Override:
    """A value from the command line: the dotted key, the value, and the flag as it was typed."""

    key: str
    value: Any
    origin: str


@dataclass
class _Draft:
    """What was gathered so far.

    Attributes:
        values: sections and their keys.
        origins: who gave which value, by dotted key.
        places: where a key, a section included, stands; for messages.
        problems: what is wrong.
    """

    values: Tree = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def overlay(self, tree: Tree, origins: Mapping[str, str]) -> None:
        """Lays `tree` over the values.

        A method of another name leaves behind what was said of the earlier one, in `tasks` too: its
        options, and the published figures, which are not those of the new one. Nor are they those
        of a method that gains or loses its gist token.
        """
        self.places.update(origins)
        method, below = tree.get("method"), self.values.get("method")
        here = below.get("name", DEFAULT_METHOD) if isinstance(below, dict) else DEFAULT_METHOD
        if isinstance(method, dict) and method.get("name", here) != here:
            self._drop_stale("method", "method", "published")
        if "gist" in tree and (tree["gist"] is None) != (self.values.get("gist") is None):
            self._drop_stale("gist", "published")
        self._lay(self.values, tree, origins, "")

    def _drop_stale(self, section: str, *keys: str) -> None:
        """Drops keys here, and in the tasks that do not say the section themselves."""
        self._drop(self.values, *keys)
        tasks = self.values.get("tasks")
        for name, task in tasks.items() if isinstance(tasks, dict) else ():
            if isinstance(task, dict) and not _decides(task, section):
                self._drop(task, *keys, prefix=f"tasks.{name}.")

    def _drop(self, values: Any, *keys: str, prefix: str = "") -> None:
        for key in keys:
            if isinstance(values, dict) and key in values:
                self._forget(f"{prefix}{key}")
                del values[key]

    def _lay(self, below: Tree, above: Tree, origins: Mapping[str, str], prefix: str) -> None:
        for key, value in above.items():
            dotted = f"{prefix}{key}"
            if isinstance(value, dict):
                if not isinstance(below.get(key), dict):
                    self._forget(dotted)
                    below[key] = {}
                self._lay(below[key], value, origins, f"{dotted}.")
                if not value and dotted in origins:
                    self.origins[dotted] = origins[dotted]
                continue
            self._forget(dotted)
            below[key] = value
            if dotted in origins:
                self.origins[dotted] = origins[dotted]

    def _forget(self, key: str) -> None:
        for given in [g for g in self.origins if g == key or g.startswith(f"{key}.")]:
            del self.origins[given]


def _decides(tree: Tree, section: str) -> bool:
    """Whether a tree says which method it is, or whether there is a gist token."""
    if section not in tree or section != "method":
        return section in tree
    own = tree[section]
    return isinstance(own, dict) and "name" in own


def load_recipe(
    path: Path | None = None,
    *,
    overrides: Sequence[Override] = (),
    sets: Sequence[str] = (),
) -> Recipe:
    """The validated recipe of a file and of what the command line changes in it.

    Later wins: the file that `extends` names, the file, the chosen task's overrides, `overrides`,
    `sets`. Paths in a file are relative to that file, those of the command line to the working
    directory; both come out absolute. A name that is no path there stays a name.

    Args:
        path: the YAML file; None for flags alone.
        overrides: flags.
        sets: texts `section.key=value`, values in YAML.

    Raises:
        RecipeError: all that is wrong, in one message.
        NotFound: the file, or one that it extends, does not exist.
    """
    draft = _Draft()
    if path is not None:
        _read(path, str(path), draft, ())
    given = [*overrides, *filter(None, (_parse_or_note(text, draft) for text in sets))]
    given.sort(key=lambda o: o.key != "method.name")
    unchosen = _choose_task(draft, given)
    for override in given:
        tree: Any = override.value
        for part in reversed(override.key.split(".")):
            tree = {part: tree}
        _resolve_paths(tree, Path.cwd(), draft)
        draft.overlay(tree, dict.fromkeys([override.key, *flatten(tree)], override.origin))
    where = str(path) if path is not None else "command line"
    recipe = _validate(draft, ignore_missing=unchosen)
    if recipe is None or draft.problems:
        raise refusal(where, draft.problems, draft.places)
    return recipe.with_origins(draft.origins)


def task_names(path: Path) -> list[str]:
    """The tasks of a family file, those of the files that it extends first; empty for any other.

    Raises:
        RecipeError: it is no YAML.
        NotFound: the file, or one that it extends, does not exist.
    """
    draft = _Draft()
    _read(path, str(path), draft, ())
    tasks = draft.values.get("tasks")
    return [str(name) for name in tasks] if isinstance(tasks, dict) else []


def parse_set(text: str) -> Override:
    """One `--set section.key=value`.

    Raises:
        RecipeError: it has another form, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise RecipeError(f"--set {text}: expected section.key=value.", "E.g. --set optim.lr=1e-3")
    return Override(key, yaml.parse(value, f"--set {key}")[0], f"--set {key}")


def _parse_or_note(text: str, draft: _Draft) -> Override | None:
    try:
        return parse_set(text)
    except RecipeError as error:
        key, _, rest = error.message.partition(": ")
        draft.problems.append(Problem(re.sub(r":\d+$", "", key), rest))
        return None


def _validate(draft: _Draft, *, ignore_missing: bool) -> Recipe | None:
    for section in (k for k in Recipe.model_fields if k not in ("seed", "published")):
        if draft.values.get(section, ...) is None:
            del draft.values[section]  # a section whose lines are all commented out
    values = {"model": {}, "data": {}, **draft.values}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        found = explain(error, values)
        known = {p.key for p in draft.problems}
        draft.problems += [
            p for p in found if p.key not in known and not (p.missing and ignore_missing)
        ]
        return None


def _read(path: Path, name: str, draft: _Draft, chain: tuple[Path, ...]) -> None:
    """Lays a file, and first the one that it extends, over the draft."""
    real = path.resolve()
    if real in chain:
        names = " -> ".join(p.name for p in (*chain[chain.index(real) :], real))
        raise RecipeError(f"{name}: `extends` goes round in a circle: {names}.")
    if not path.is_file():
        raise _no_file(path, name)
    tree, lines = yaml.parse_file(path, name)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{name}: found {type(tree).__name__}, expected a mapping of sections.",
            "A recipe begins like `model: {name: gist_vit_nano}`.",
        )
    tree = {str(key): value for key, value in tree.items()}
    origins = {".".join(key): f"{name}:{line}" for key, line in lines.items()}
    base = tree.pop("extends", None)
    if isinstance(base, str) and base:
        base = _expand(base, "extends", draft)
        below = Path(os.path.normpath(path.parent / base))
        _read(below, str(below), draft, (*chain, real))
    elif base is not None:
        draft.problems.append(Problem("extends", "expected the path of one recipe"))
    tasks = tree.get("tasks")
    for part in (tree, *(tasks.values() if isinstance(tasks, dict) else ())):
        _resolve_paths(part, path.parent, draft)
    draft.overlay(tree, origins)


def _no_file(path: Path, name: str) -> NotFound:
    if (path / "recipe.yaml").is_file():
        return NotFound(f"{name} is a run directory.", f"Its recipe is {name}/recipe.yaml.")
    if path.is_dir():
        return NotFound(f"{name} is a folder.", "Give one recipe (a .yaml file).")
    folder = path.parent
    beside = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
    hint = did_you_mean(path.name, beside) or "`gist list recipes` shows those that there are."
    return NotFound(f"The recipe {name} does not exist.", hint)


def _choose_task(draft: _Draft, given: Sequence[Override]) -> bool:
    """Lays the chosen task over the draft. True where none could be chosen."""
    tasks = draft.values.pop("tasks", None)
    asked = [o for o in given if o.key == "task.name"]
    section = draft.values.get("task")
    name = asked[-1].value if asked else section.get("name") if isinstance(section, dict) else None
    if tasks is None:
        if asked and name is not None:
            text = f"found {name!r}, but the recipe has no `tasks` to choose from"
            draft.problems.append(Problem("task.name", f"{text} ({asked[-1].origin})"))
        return False
    if not isinstance(tasks, dict) or not all(isinstance(t, dict | None) for t in tasks.values()):
        draft.problems.append(Problem("tasks", "expected {NAME: {section: {key: value}}}"))
        return True
    tasks = {str(key): value or {} for key, value in tasks.items()}
    if name is None or str(name) not in tasks:
        found = "missing" if name is None else f"found {name!r}"
        hint = did_you_mean(str(name or ""), tasks)
        text = f"{found}; this is a family file: choose a task with --task. {hint}"
        draft.problems.append(Problem("task.name", text))
        return True
    prefix = f"tasks.{name}."
    lines = {k.removeprefix(prefix): v for k, v in draft.origins.items() if k.startswith(prefix)}
    draft.overlay(tasks[str(name)], lines)
    return False


def _resolve_paths(tree: Any, base: Path, draft: _Draft) -> None:
    """Replaces, in place, the paths among `_PATHS` of one tree by absolute ones."""
    for section, key in _PATHS:
        inner = tree.get(section) if isinstance(tree, dict) else None
        if not isinstance(inner, dict):
            continue
        value = inner.get(key)
        if not isinstance(value, str) or not value:
            continue
        text = _expand(value, f"{section}.{key}", draft)
        file, colon, name = text.rpartition(":")
        if key == "init" and text.startswith("run:"):
            inner[key] = f"run:{os.path.abspath(base / text.removeprefix('run:'))}"
        elif (section, key) == ("method", "name"):
            if file.endswith(".py"):
                inner[key] = f"{os.path.abspath(base / file)}{colon}{name}"
        elif key in ("dir", "weights") or (key == "init" and _is_run_or_file(section, text)):
            inner[key] = text if text in _NO_PATHS else os.path.abspath(base / text)
        elif key != "init" and text not in _NO_PATHS and _is_path(text, base):
            inner[key] = os.path.abspath(base / text)
        else:
            inner[key] = text


def _is_run_or_file(section: str, init: str) -> bool:
    """A method may start from a word, a hypernetwork only from another run."""
    return section == "hyper" or init.endswith(".safetensors")


def _is_path(text: str, base: Path) -> bool:
    explicit = text in (".", "..") or text.startswith(("./", "../", ".\\", "..\\"))
    return explicit or os.path.isabs(text) or os.path.exists(base / text)


def _expand(text: str, key: str, draft: _Draft) -> str:
    """`~` and `${VAR}` put in; an undefined variable is noted."""
    unset = dict.fromkeys(v for v in _VARIABLE.findall(text) if v not in os.environ)
    for variable in unset:
        draft.problems.append(Problem(key, f"the variable ${{{variable}}} is not set"))
    return os.path.expanduser(_VARIABLE.sub(lambda m: os.environ.get(m[1], m[0]), text))
