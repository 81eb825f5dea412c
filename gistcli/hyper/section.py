"""The section `hyper` of a recipe: a method that makes prefixes of examples, not answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from gistcli.backbones.base import Backbone
from gistcli.errors import Refused
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.methods.base import Capabilities, Method, Recommended

NEEDS = {
    "adapt_downstream": ("context", "gists"),
    "distill": ("context", "gists"),
    "copy_probability": ("mode", "copy"),
}
"""Option -> another one, and the value of that without which the first does nothing."""


class Hyper(BaseModel):
    """The section `hyper` of a recipe: what examples become, and what is drawn to learn it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    gists: Annotated[int, Field(ge=1)] = 16
    """Gist tokens, whose keys and values become the prefix; none where `context` is another. 16 as
    in the authors' code."""
    context: Literal["gists", "full", "none"] = "gists"
    """What a query sees of the examples: the gists; the examples themselves, with the method acting
    on every token (the multi-task baseline with full attention); or nothing."""
    adapt_downstream: bool = False
    """Train a second copy of the method, which acts on the queries; without, the network that reads
    a prefix is the frozen one."""
    example_tokens: Annotated[int, Field(ge=2)] = 1024
    """Tokens that the examples may take, with the first one and the gists."""
    query_tokens: Annotated[int, Field(ge=2)] = 384
    """Tokens of a query with its answer; longer ones lose their beginning."""
    max_examples: Annotated[int, Field(ge=1)] = 32
    """Examples of a prefix, as far as they fit in whole."""
    queries: Annotated[int, Field(ge=1)] = 1
    """Queries that learn from each prefix at once."""
    mode: Literal["sample", "positive", "copy"] = "sample"
    """Which examples are drawn: any of the task; those that it lists as positive; or any, with the
    queries themselves among them at times, which teaches to keep what was read."""
    copy_probability: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How often a query is among its examples, in mode copy."""
    symbols: bool = False
    """Put arbitrary symbols in the place of the labels, anew in every draw (symbol tuning)."""
    distill: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from what the frozen network answers with the examples in sight."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of both softmaxes in that divergence, which is multiplied by its square."""
    init: Path | None = None
    """Go on from another run: its directory, or its tuner.safetensors."""

    @field_validator("init")
    @classmethod
    def _names_a_run_as_such(cls, init: Path | None) -> Path | None:
        if init is not None and str(init).startswith("run:"):
            raise ValueError("init is the directory of a run itself, without `run:`")
        return init

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        for option, (other, value) in NEEDS.items():
            default = type(self).model_fields[option].default
            if getattr(self, option) != default and getattr(self, other) != value:
                raise ValueError(f"{option} acts with {other} {value} only")
        if self.temperature != 1 and not self.distill:
            raise ValueError("temperature acts with distill only")
        if self.context == "gists" and self.gists + 2 > self.example_tokens:
            raise ValueError(
                f"example_tokens leaves no room for examples beside {self.gists} gists"
            )
        return self

    @property
    def compresses(self) -> bool:
        """Whether examples become gists."""
        return self.context == "gists"

    def wrap(self, method: Method) -> WithHyper:
        """The method as a hypernetwork.

        Raises:
            Refused: a method that a token gate does not reach.
        """
        if not method.capabilities().gateable:
            raise Refused(
                f"{method.name} cannot be a hypernetwork: it does more than change what single "
                "tokens become inside the network, so that it cannot act on the examples alone.",
                "Use a method that can be switched off for single tokens, such as lora, gift or "
                "adapter (`gist list methods`).",
            )
        return WithHyper(inner=method, hyper=self)


class WithHyper(Method):
    """A method as a hypernetwork; no entry of the registry, made by `Hyper.wrap`."""

    inner: SerializeAsAny[Method]
    """The method itself."""
    hyper: Hyper
    """What it makes of examples."""

    @property
    def name(self) -> str:  # type: ignore[override]
        """The inner method's with a mark, for messages."""
        return f"{self.inner.name} + hyper"

    @property
    def summary(self) -> str:  # type: ignore[override]
        """The inner method's, and what it is for."""
        return f"{self.inner.summary}, as a hypernetwork"

    @property
    def recommended(self) -> Mapping[str, Recommended]:  # type: ignore[override]
        """The inner method's: the gists train at its rates."""
        return self.inner.recommended

    def label(self) -> str:
        """The inner method's, with a mark for what a query sees."""
        marks = {"gists": "hyper", "full": "full context", "none": "no context"}
        return f"{self.inner.label()} + {marks[self.hyper.context]}"

    def starts_as_base(self) -> bool:
        """Whether a text without examples is read as by the base; so wherever the method is off."""
        off = self.hyper.compresses and not self.hyper.adapt_downstream
        return off or self.inner.starts_as_base()

    def capabilities(self) -> Capabilities:
        """What reads texts merges where the method does; what makes prefixes stays beside it."""
        found = replace(self.inner.capabilities(), gateable=False, frozen_features=False)
        if self.hyper.compresses and not self.hyper.adapt_downstream:
            reason = "it leaves the network that reads texts as it was, and makes prefixes for it"
            return replace(found, merge=reason, low_rank=False)
        return found

    def attach(self, backbone: Backbone, *, head: bool = True) -> HyperTuner:
        """Attach the method, once or twice, and make the gists.

        Raises:
            NotSupported: no decoder that predicts tokens, or one whose keys cannot be moved.
        """
        return HyperTuner(self, backbone, head=head)
