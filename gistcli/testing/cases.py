"""Which methods, with which options, are tested on which kinds of backbone."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import torch

from gistcli import registry
from gistcli.errors import GistError, NotMergeable
from gistcli.methods.base import Method, Tuner
from gistcli.testing.kinds import KINDS, Kind

PLAIN = "class token"


@dataclass(frozen=True)
class Configuration:
    """A method with one value of one option changed, or none."""

    name: str
    option: str | None = None
    value: Any = None

    def __str__(self) -> str:
        return self.name if self.option is None else f"{self.name} {self.option}={self.value}"

    @property
    def kind(self) -> type[Method]:
        """The method's class."""
        found: type[Method] = registry.resolve("methods", self.name)
        return found

    def method(self, **options: Any) -> Method:
        """The method; `options` come on top."""
        own = {} if self.option is None else {self.option: self.value}
        return self.kind(**{**own, **options})


@dataclass(frozen=True)
class Case:
    """A configuration on a kind of backbone."""

    configuration: Configuration
    kind: Kind

    def __str__(self) -> str:
        return f"{self.configuration} on {self.kind.name}"

    def method(self, **options: Any) -> Method:
        """The method; `options` come on top."""
        return self.configuration.method(**options)

    def attach(self, *, seed: int = 2, **options: Any) -> Tuner:
        """A tuner on a new backbone, both in evaluation mode."""
        backbone = self.kind.backbone()
        torch.manual_seed(seed)
        return self.method(**options).attach(backbone).eval()


@cache
def _gateable(case: Case) -> bool:
    """Acts on a sequence of tokens, through sites and points that see activations."""
    tuner = case.attach()
    bypassed = any(site.parent is not None for site in tuner.sites)
    gateable = tuner.method.capabilities().gateable
    return gateable and tuner.backbone.inserted is not None and not bypassed


@cache
def _merges(case: Case) -> bool:
    """As options and backbone say together."""
    try:
        case.attach().merge()
    except NotMergeable:
        return False
    return True


NEEDS: dict[str, Callable[[Case], bool]] = {
    "layers": lambda case: "layers" in case.configuration.kind.model_fields,
    "gate": _gateable,
    "merge": _merges,
    "no merge": lambda case: not _merges(case),
    "low rank": lambda case: case.method().capabilities().low_rank,
}
"""What `@pytest.mark.needs(NAME)` asks of a case; the others are not generated."""


def configurations(name: str) -> Iterator[Configuration]:
    """The defaults, and every other value of each flag and choice among the options."""
    yield Configuration(name)
    kind: type[Method] = registry.resolve("methods", name)
    default = kind()
    for option, field in kind.model_fields.items():
        for value in _choices(field.annotation):
            if value != getattr(default, option):
                yield Configuration(name, option, value)


def _choices(annotation: Any) -> list[Any]:
    """The values of a Literal, of a flag, and of those inside a union; "all" is no choice."""
    if annotation is bool:
        return [False, True]
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if value != "all"]
    if get_origin(annotation) in (Union, types.UnionType):
        return [value for part in get_args(annotation) for value in _choices(part)]
    return []


def all_cases(names: Sequence[str]) -> Iterator[Case]:
    """Every pair, those that are refused included."""
    for name in names:
        for configuration in configurations(name):
            everywhere = configuration.option is None
            for kind in KINDS.values():
                if everywhere or kind.name == PLAIN:
                    yield Case(configuration, kind)


@cache
def refusal(case: Case) -> GistError | None:
    """The error with which `attach` refuses a pair, or None."""
    try:
        case.attach()
    except GistError as error:
        return error
    return None
