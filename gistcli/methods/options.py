"""Types of options that several methods have."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

NUMBERS = re.compile(r"\s*-?\d+\s*(,\s*-?\d+\s*)*")


def _listed(value: Any) -> Any:
    """`query,value` as a list: what a shell passes without quotes, and YAML reads as one string."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _numbered(value: Any) -> Any:
    """`0,1` as a list, a number as a list of one; `all` stays."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if isinstance(value, str) and NUMBERS.fullmatch(value):
        return _listed(value)
    return value


Targets = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed)]
"""Roles or names of linear maps; see `Backbone.sites`."""

Layers = Annotated[Literal["all"] | tuple[int, ...], BeforeValidator(_numbered)]
"""Block numbers from 0; negative ones count from the end."""
