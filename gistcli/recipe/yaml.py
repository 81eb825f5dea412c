"""YAML without surprises: what looks like a number is one, and no key wins silently.

Against PyYAML's defaults: `1e-3` is a number, booleans are `true` and `false` only (`on`,
`yes` and `off` stay text, also as keys), `1:30`, `010` and `2020-01-01` stay text, a key that
stands twice is refused.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from gistcli.errors import RecipeError

Lines = dict[tuple[str, ...], int]

_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers above, unique keys, and no loops through anchors."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own convention

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _refuse_duplicates(node)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what `_Loader` would otherwise read as something else than text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own convention

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _represent_float(dumper: _Dumper, value: float) -> yaml.ScalarNode:
    text = repr(value) if math.isfinite(value) else f".{value!r}".replace(".-", "-.")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


for _tag, (_pattern, _first) in _RESOLVERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(f"^(?:{_pattern})$"),
            [""] * ("\0" in _first) + list(_first.replace("\0", "")),
        )
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Dumper.add_representer(float, _represent_float)


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    seen: dict[str, yaml.Mark] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
            continue
        if key.value in seen:
            first = seen[key.value].line + 1
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key.value!r} stands here and in line {first}",
                problem_mark=key.start_mark,
            )
        seen[key.value] = key.start_mark


def _lines(node: yaml.Node, path: tuple[str, ...], open_nodes: tuple[int, ...]) -> Lines:
    """The line (from 1) of every key below a node, by its path."""
    if id(node) in open_nodes:
        raise yaml.constructor.ConstructorError(
            problem="an anchor that contains itself", problem_mark=node.start_mark
        )
    found: Lines = {}
    below = (*open_nodes, id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _lines(item, path, below)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            merged = key.tag.endswith(":merge")
            at = path if merged else (*path, str(key.value))
            inner = _lines(value, at, below)
            found = {**inner, **found} if merged else {**found, **inner}
            if not merged:
                found[at] = key.start_mark.line + 1
    return found


def parse(text: str, name: str) -> tuple[Any, Lines]:
    """The value of a YAML text and the line of each key.

    Args:
        text: one YAML document.
        name: how errors call it, as a rule the file's path.

    Raises:
        RecipeError: it is no YAML, or a key stands twice; one line with the place.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines = _lines(node, (), ())
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise RecipeError(f"{place}: {_sentence(error)}.", "Correct the YAML.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: {' '.join(str(error).split())}.", "Correct the YAML.") from None


def _sentence(error: yaml.MarkedYAMLError) -> str:
    if "\\t" in (error.problem or ""):
        return "a tab indents this line; YAML wants spaces"
    return " ".join(filter(None, (error.context, error.problem)))


def parse_file(path: Path, name: str) -> tuple[Any, Lines]:
    """`parse` of a UTF-8 file, with or without a byte-order mark.

    Raises:
        RecipeError: as `parse`, or the file is no UTF-8 text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{name}: byte {error.start} is no UTF-8 text.", "Save the recipe as UTF-8."
        ) from None
    return parse(text, name)


def dump(value: Any) -> str:
    """YAML text that `parse` reads back as an equal value, keys in the given order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def inline(value: Any) -> str:
    """A value as it would stand in a recipe, on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=1_000_000
    )
    return text.removesuffix("...\n").strip()
