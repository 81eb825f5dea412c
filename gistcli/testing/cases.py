"""Which methods, with which options, are tested on which kinds of backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from gistcli import registry
from gistcli.errors import GistError
from gistcli.methods.base import Method, Tuner
from gistcli.methods.choices import choices
from gistcli.methods.gist import Gist
from gistcli.testing.kinds import KINDS, Kind

PLAIN, PLAIN_TEXT = "class token", "Llama"


def home(name: str) -> str:
    """The kind on which a method is tested with all its options: the plain one that it reads."""
    method: type[Method] = registry.resolve("methods", name)
    return PLAIN if "vision" in method.recommended else PLAIN_TEXT


@dataclass(frozen=True)
class Configuration:
    """A method with one value of one option changed, or none; or with a gist token beside it."""

    name: str
    option: str | None = None
    value: Any = None
    gist: bool = False

    def __str__(self) -> str:
        own = self.name if self.option is None else f"{self.name} {self.option}={self.value}"
        return f"{own} + gist" if self.gist else own

    @property
    def listed(self) -> str:
        """The name under which its refusals are listed."""
        return "gist" if self.gist else self.name

    @property
    def kind(self) -> type[Method]:
        """The method's class."""
        found: type[Method] = registry.resolve("methods", self.name)
        return found

    def method(self, **options: Any) -> Method:
        """The method; `options` come on top."""
        own = {} if self.option is None else {self.option: self.value}
        method = self.kind(**{**own, **options})
        return Gist().wrap(method) if self.gist else method


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
        # `torch.manual_seed` keeps a stack trace for every kind of device that is not there
        torch.default_generator.manual_seed(seed)
        return self.method(**options).attach(backbone).eval()


@dataclass(frozen=True)
class Facts:
    """What one attach tells about a case.

    Attributes:
        refusal: the error with which `attach` refuses the pair, or None.
        gateable: acts on a sequence of tokens, through sites and points that see activations.
        merges: as options and backbone say together.
    """

    refusal: GistError | None = None
    gateable: bool = False
    merges: bool = False


@cache
def facts(case: Case) -> Facts:
    """Of a case, found once: every worker of a parallel run asks for all of them."""
    try:
        tuner = case.attach()
    except GistError as error:
        return Facts(error)
    bypassed = any(site.parent is not None for site in tuner.sites)
    sequence = tuner.backbone.inserted is not None
    gateable = tuner.method.capabilities().gateable and sequence
    return Facts(None, gateable and not bypassed, tuner.merge_refusal() is None)


SEAMS = ("adapter", "bitfit", "gift", "lora", "prefix", "prompt", "ssf", "toast", "vpt")
"""Methods that between them use every seam: points, owned parameters, inputs, outputs of sites,
outputs of modules, keys and values, two passes, tokens that are refreshed."""


TRACED = ("EVA02", "BEiT", "Swin", "Hiera", "Hugging Face ViT")
"""Kinds that between them have all code that is traced, beside the plain one and text."""


BESIDE_SITES = ("adapter", "ssf", "toast")
"""Methods that act elsewhere than on inputs and outputs of sites and on inserted tokens, with which
the tests of each family of images trace every one of its kinds."""


def _compiles(case: Case) -> bool:
    """Whether tracing is worth its second: what matters is code and seam, not method and option."""
    name, gist = case.configuration.name, case.configuration.gist
    if name not in registry.TABLES["methods"]:
        few = case.kind.few if case.kind.text else case.kind.name not in (PLAIN, *TRACED)
        return not few
    if case.kind.text:  # transformers' code is long, and the same on all of them
        return name in ("adapter", "lora", "prefix") and not case.kind.few
    if case.kind.name == PLAIN:
        return case.configuration.option is None and (not gist or name == GIST_EVERYWHERE)
    return name in BESIDE_SITES and not gist and case.kind.name in TRACED


def _seams(case: Case) -> bool:
    """One method of ours for each seam, and every one on the plain kind."""
    name = case.configuration.name
    ours = name in registry.TABLES["methods"]
    return not ours or case.kind.name == home(name) or name in SEAMS


def _families(case: Case) -> bool:
    """Of those of `_seams`, all on the plain kind, and the others on the first of each family."""
    plain = case.kind.name == home(case.configuration.name)
    first = next(k.name for k in KINDS.values() if k.family == case.kind.family)
    return plain or (_seams(case) and case.kind.name == first)


NEEDS: dict[str, Callable[[Case], bool]] = {
    # a gist token takes part from the first block on, whatever the method's layers
    "layers": lambda case: (
        "layers" in case.configuration.kind.model_fields and not case.configuration.gist
    ),
    "gate": lambda case: facts(case).gateable,
    "merge": lambda case: facts(case).merges,
    "no merge": lambda case: not facts(case).merges,
    "compiling": _compiles,
    "seam": _seams,
    "family": _families,
    "plain": lambda case: case.kind.name == home(case.configuration.name),
    "low rank": lambda case: case.method().capabilities().low_rank,
}
"""What `@pytest.mark.needs(NAME)` asks of a case; the others are not generated. `plain` is for what
depends on the method alone; `seam` for what depends on the kind of backbone, and of the method only
on how it acts; `family` for what a seam does in the code of a family, whatever the kind."""


def configurations(name: str) -> Iterator[Configuration]:
    """The defaults, and every other value of each flag and choice among the options."""
    yield Configuration(name)
    kind: type[Method] = registry.resolve("methods", name)
    default = kind()
    for option, values in choices(kind).items():
        for value in values:
            if value != getattr(default, option):
                yield Configuration(name, option, value)


GIST_EVERYWHERE = "lora"
"""The method over which the gist token is tested on every kind; over the others at `home`.
What a network does with the token does not depend on the method, nor the reverse."""


FEW = ("adapter", "full", "gift", "lora", "prefix", "ssf")
"""The methods that stand for all of ours on the kinds `kinds.FEW`."""


def all_cases(names: Sequence[str]) -> Iterator[Case]:
    """Every pair, those that are refused included."""
    for name in names:
        ours = name in registry.TABLES["methods"]
        kinds = [k for k in KINDS.values() if not k.few or not ours or name in FEW]
        for configuration in configurations(name):
            everywhere = configuration.option is None
            for kind in kinds:
                if everywhere or kind.name == home(name):
                    yield Case(configuration, kind)
        beside = Configuration(name, gist=True)
        for kind in kinds:
            if kind.name == home(name) or (name == GIST_EVERYWHERE and not kind.few):
                yield Case(beside, kind)
