"""The recipe as a validated, frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gistcli import registry
from gistcli.errors import GistError
from gistcli.recipe import yaml
from gistcli.recipe.sections import (
    DataSection,
    EvalSection,
    ModelSection,
    OptimSection,
    OutputSection,
    Published,
    Section,
    Seed,
    TaskSection,
    TrainSection,
)

DEFAULT_METHOD = "gift"
MAY_CHANGE = (
    "output",
    "published",
    "model.grad_checkpointing",
    "train.device",
    "train.micro_batch_size",
    "train.max_time",
    "train.save_steps",
    "train.keep",
    "eval.batch_size",
)
"""Keys (and sections) that may differ when a run goes on: they do not change its result."""


def _refuse(section: str, key: str, value: Any, found: GistError | str) -> ValidationError:
    """A problem at a key of a section."""
    text = found if isinstance(found, str) else f"{found.message} {found.hint}".strip()
    error = PydanticCustomError(f"{section}_{key}", "{message}", {"message": text})
    details = InitErrorDetails(type=error, loc=(key,), input=value)
    return ValidationError.from_exception_data(section, [details])


class Recipe(Section):
    """Everything that decides a run. Built by `load_recipe`, or `Recipe.model_validate(dict)`."""

    seed: Seed = 0
    """Seed of the head, the method's parameters, the order and the augmentation."""
    task: TaskSection = Field(default_factory=TaskSection)
    """What is learnt."""
    model: ModelSection
    """The pretrained backbone."""
    data: DataSection
    """The labelled examples."""
    method: dict[str, Any] = Field(
        default_factory=lambda: {"name": DEFAULT_METHOD}, validate_default=True
    )
    """The method: its name and its options."""
    gist: dict[str, Any] | None = Field(default=None, validate_default=True)
    """A gist token over the method, with the options of its loss; null: none."""
    hyper: dict[str, Any] | None = Field(default=None, validate_default=True)
    """The method as a hypernetwork, which makes prefixes of examples; null: it is none."""
    optim: OptimSection = Field(default_factory=OptimSection)
    """The optimiser; null means what the method recommends."""
    train: TrainSection = Field(default_factory=TrainSection)
    """How long, on what, in which portions."""
    eval: EvalSection = Field(default_factory=EvalSection)
    """What validation is for; test is read once, at the end."""
    output: OutputSection = Field(default_factory=OutputSection)
    """Where the results go."""
    published: Published | None = None
    """The figure in a paper that the recipe stands for."""

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("method", mode="after")
    @classmethod
    def _known_method(cls, value: dict[str, Any]) -> dict[str, Any]:
        """The section with every option of the method, validated by the method's own class."""
        options = dict(value)
        name = options.pop("name", DEFAULT_METHOD)
        if not isinstance(name, str):
            raise _refuse("method", "name", name, "expected the name of a method")
        try:
            method = registry.resolve("methods", name)
        except GistError as error:
            raise _refuse("method", "name", name, error) from None
        return {"name": name, **method.model_validate(options).model_dump(mode="json")}

    @field_validator("gist", mode="after")
    @classmethod
    def _known_gist(
        cls, value: dict[str, Any] | None, info: ValidationInfo
    ) -> dict[str, Any] | None:
        """The section with every option, validated with the method that it goes over."""
        if value is None:
            return None
        gist = registry.resolve("sections", "gist").model_validate(value)
        if "method" in info.data:
            try:
                gist.wrap(_build(info.data["method"]))
            except GistError as error:
                raise _refuse("gist", "source", gist.source, error) from None
        return dict(gist.model_dump(mode="json"))

    @field_validator("hyper", mode="after")
    @classmethod
    def _known_hyper(
        cls, value: dict[str, Any] | None, info: ValidationInfo
    ) -> dict[str, Any] | None:
        """The section with every option, validated with the method that becomes a hypernetwork."""
        if value is None:
            return None
        hyper = registry.resolve("sections", "hyper").model_validate(value)
        if info.data.get("gist") is not None:
            text = "a gist token learns one answer a text, and a hypernetwork none: leave one out"
            raise _refuse("hyper", "context", hyper.context, text)
        if "method" in info.data:
            try:
                hyper.wrap(_build(info.data["method"]))
            except GistError as error:
                raise _refuse("hyper", "context", hyper.context, error) from None
        return dict(hyper.model_dump(mode="json"))

    def build_method(self) -> Any:
        """The Method object that the sections `method` and `gist` or `hyper` describe."""
        method = _build(self.method)
        for name, options in (("gist", self.gist), ("hyper", self.hyper)):
            if options is not None:
                method = registry.resolve("sections", name).model_validate(options).wrap(method)
        return method

    def origin(self, key: str) -> str:
        """Where the value of a dotted key comes from.

        `recipes/x.yaml:7`, `--lr`, `--set optim.lr`, or `default` (`gift default` for an option of
        a method). A recipe that was not loaded by `load_recipe` knows only defaults.
        """
        parts = key.split(".")
        # who gave an empty mapping gave nothing in it
        if key in self._origins:
            return self._origins[key]
        in_method = parts[0] == "method" and parts[-1] != "name"
        return f"{self.method['name']} default" if in_method else "default"

    def defaulted(self) -> dict[str, tuple[Any, str]]:
        """Every dotted key that nobody gave, with its value and `origin`."""
        found = {key: (value, self.origin(key)) for key, value in flatten(self.as_dict()).items()}
        return {key: (v, o) for key, (v, o) in found.items() if o.endswith("default")}

    def with_origins(self, origins: Mapping[str, str]) -> Recipe:
        """The same recipe that knows who gave which dotted key."""
        copy = self.model_copy()
        copy._origins = dict(origins)
        return copy

    def as_dict(self) -> dict[str, Any]:
        """Plain values, every key there; an absent `published` is left out."""
        plain = self.model_dump(mode="json")
        if plain["published"] is None:
            del plain["published"]
        return plain

    def __eq__(self, other: object) -> bool:
        """Equal values; who gave them does not matter."""
        return isinstance(other, Recipe) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]


def _build(section: Mapping[str, Any]) -> Any:
    """The Method object of a section `method`."""
    options = {k: v for k, v in section.items() if k != "name"}
    return registry.resolve("methods", section["name"]).model_validate(options)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def dump_recipe(recipe: Recipe) -> str:
    """YAML text with every key; `load_recipe` reads an equal recipe from it."""
    return yaml.dump(recipe.as_dict())


def differences(there: Recipe, here: Recipe) -> list[str]:
    """One line for each key whose two values would give another run; empty when they agree.

    Keys of MAY_CHANGE are not looked at.
    """
    a, b = flatten(there.as_dict()), flatten(here.as_dict())
    keys = [k for k in dict.fromkeys([*a, *b]) if not _may_change(k)]
    return [
        f"{key}: {_shown(a, key)} there, {_shown(b, key)} here"
        for key in keys
        if key not in a or key not in b or a[key] != b[key]
    ]


def _may_change(key: str) -> bool:
    return any(key == m or key.startswith(f"{m}.") for m in MAY_CHANGE)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "absent"
    return yaml.inline(flat[key])
