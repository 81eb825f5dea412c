"""The values that an option can take, where they can be counted: flags and choices."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from gistcli.methods.base import Method


def choices(kind: type[Method]) -> dict[str, list[Any]]:
    """Option -> its values, for every flag and every choice; one word alone is no choice."""
    found = {name: _values(field.annotation) for name, field in kind.model_fields.items()}
    return {name: values for name, values in found.items() if values}


def _values(annotation: Any) -> list[Any]:
    """The values of a Literal, of a flag, and of those inside a union."""
    if annotation is bool:
        return [False, True]
    if get_origin(annotation) is Literal:
        values = list(get_args(annotation))
        return values if len(values) > 1 else []
    if get_origin(annotation) in (Union, types.UnionType):
        return [value for part in get_args(annotation) for value in _values(part)]
    return []
