"""GIST: one more token that gathers what a task is about, over any method (arXiv 2312.07255).

The token enters behind the class token in front of the first block, without a position, and passes
through all blocks. With z the logits of the class token, g those of the gist token through the
same pooling and head, and J the interaction of the two (`interaction.py`), the loss is

    L = CE(z, y) + alpha CE(g, y) + lambda J(z, g; T)

Prediction is z alone; the token stays in the sequence. Several tokens (k > 1) are averaged behind
the last norm, then classified.

In a decoder of text the token stands behind the text, sees all of it and is seen by nothing: it is
there in training alone, acts through what both logits share, and z is read where it always was.

`source: prompts` is the paper's motivating experiment: no new token, g from the mean output of the
inner method's prompts. Shape suffixes: B = batch, K = classes, P = tokens, D = width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone, Layers
from gistcli.backbones.layout import Features
from gistcli.backbones.sites import Site
from gistcli.backbones.tokens import SOURCE_GIST
from gistcli.errors import NotSupported, Refused
from gistcli.methods.base import (
    Capabilities,
    Criterion,
    Method,
    Recommended,
    Trained,
    Tuner,
    full_precision,
)
from gistcli.methods.interaction import INTERACTIONS, OF_SOFTMAX, SOFTENED
from gistcli.methods.merged import Merged

TOKEN = "gist.token"
BOUND = 0.5
"""The token starts uniform between -0.5 and 0.5, as in the authors' code."""
TOKEN_ONLY = ("length", "dropout", "place")

Form = Literal["bkld", "fkld", "rkld", "bernoulli", "mse", "cosine"]
Weight = Annotated[float, Field(gt=0)]


class Gist(BaseModel):
    """The section `gist` of a recipe: the token, and what is learnt from it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    length: Annotated[int, Field(ge=1)] = 1
    """Number of tokens, whose mean output is classified."""
    alpha: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the task's own loss on the gist token."""
    lambda_: Annotated[float, Field(ge=0, alias="lambda")] = 0.75
    """Weight of the interaction."""
    temperature: Annotated[float, Field(gt=0)] = 3.0
    """Of both softmaxes inside the divergences. Without `scale_t2` their gradient falls with its
    square, so that it acts like a small `lambda`."""
    interaction: (
        Literal["auto", "none"] | Form | Annotated[dict[Form, Weight], Field(min_length=1)]
    ) = "auto"
    """What pulls the two logits together, or NAME: weight for several; auto is bkld, and mse for a
    head with one output."""
    source: Literal["token", "prompts"] = "token"
    """prompts: no new token; the mean output of the method's prompts takes its place."""
    place: Literal["decoder", "encoder"] = "decoder"
    """Of an encoder-decoder: last in the target, where evaluation and merge drop the token, or
    first in the source, which looks at it; the decoder reads it, and nothing else, for g."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """On the token, by image and element, in training."""
    detach: Literal["none", "cls", "gist"] = "none"
    """Whose logits the interaction only reads; as published it changes both."""
    scale_t2: bool = False
    """Multiply divergences by the square of the temperature, as in distillation."""

    @model_validator(mode="after")
    def _fits_the_source(self) -> Self:
        for option in TOKEN_ONLY:
            default = type(self).model_fields[option].default
            if self.source != "token" and getattr(self, option) != default:
                raise ValueError(f"{option} acts with source token only")
        return self

    def wrap(self, method: Method) -> WithGist:
        """The method with the token beside it.

        Raises:
            Refused: `source: prompts` over a method that has none.
        """
        if self.source == "prompts" and not method.capabilities().tokens:
            raise Refused(
                f"{method.name} has no prompts that gist.source: prompts could read.",
                "Use the method vpt, or gist.source: token.",
            )
        return WithGist(inner=method, gist=self)

    @property
    def slot(self) -> str:
        """Whose output is read."""
        if self.source == "prompts":
            return "prompts"
        return "gist" if self.place == "decoder" else SOURCE_GIST

    def weights(self, outputs: int) -> dict[str, float]:
        """Interaction -> its weight in the loss, for a head with so many outputs; none with 0.

        Raises:
            Refused: a softmax over a single output, which is always 1.
        """
        if self.interaction == "none" or self.lambda_ == 0:
            return {}
        chosen = self.interaction
        if chosen == "auto":
            chosen = "mse" if outputs == 1 else "bkld"
        forms: Sequence[tuple[str, float]] = (
            [(chosen, 1.0)] if isinstance(chosen, str) else list(chosen.items())
        )
        constant = [name for name, _ in forms if name in OF_SOFTMAX]
        if outputs == 1 and constant:
            raise Refused(
                f"gist.interaction: {', '.join(constant)} is 0 for a head with one output.",
                "Use mse, or auto.",
            )
        softened = self.temperature**2 if self.scale_t2 else 1.0
        return {
            name: self.lambda_ * weight * (softened if name in SOFTENED else 1.0)
            for name, weight in forms
        }


class WithGist(Method):
    """A method with a gist token beside it; no entry of the registry, made by `Gist.wrap`."""

    inner: SerializeAsAny[Method]
    """The method itself."""
    gist: Gist
    """The token and its loss."""

    @property
    def name(self) -> str:  # type: ignore[override]
        """The inner method's with a mark, for messages."""
        return f"{self.inner.name} + gist"

    @property
    def summary(self) -> str:  # type: ignore[override]
        """The inner method's, and what stands beside it."""
        return f"{self.inner.summary}, with a gist token"

    @property
    def recommended(self) -> Mapping[str, Recommended]:  # type: ignore[override]
        """The inner method's: the token trains at its rates."""
        return self.inner.recommended

    def label(self) -> str:
        """The inner method's, with a mark."""
        return f"{self.inner.label()} + gist"

    def starts_as_base(self) -> bool:
        """No where there is a token: attention sees it from the start, but in decoders of text."""
        return self.gist.source == "prompts" and self.inner.starts_as_base()

    def capabilities(self) -> Capabilities:
        """Merges where the inner method does, and the network has registers to hold the token.

        The head reads what the token changes, no gate reaches it, and no LoRA folder holds it.
        """
        inner = self.inner.capabilities()
        return replace(inner, gateable=False, tokens=True, low_rank=False, frozen_features=False)

    def attach(self, backbone: Backbone, *, head: bool = True) -> GistTuner:
        """Attach the inner method, which trains the head, and insert the token."""
        return GistTuner(self, backbone, head=head)


class GistTuner(Tuner):
    """Holds the token (P, D) and the inner method's tuner, whose names and state stay its own.

    The token is drawn behind the inner method's parameters: these start as without it.
    """

    method: WithGist
    inner: Tuner

    def __init__(self, method: WithGist, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=False)
        gist = method.gist
        if gist.source == "token":
            _require_place(backbone, gist.slot)
            backbone.insert_tokens(gist.slot, gist.length, self._make, self.switch)
        else:
            _require_sight(backbone)
        self.inner = method.inner.attach(backbone, head=head)
        self.owned, self.sites = self.inner.owned, self.inner.sites
        self.weights = gist.weights(_outputs(backbone))
        self.gist = nn.ParameterDict()
        if gist.source == "token":
            like = next(backbone.model.parameters())
            shape = (gist.length, backbone.token_width("gist"))
            self.gist["token"] = full_precision(shape, like).uniform_(-BOUND, BOUND)

    def _make(self, batch: int) -> Tensor:
        tokens_BPD = self.gist["token"].expand(batch, -1, -1)
        return F.dropout(tokens_BPD, self.method.gist.dropout, self.training)

    # --- what the inner tuner does ----------------------------------------------------------

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """As the inner method drives the backbone, with the token in the sequence."""
        features: Features = self.inner(batch)
        return features

    def start(self) -> None:
        """The inner method's start."""
        self.inner.start()

    def step(self) -> AbstractContextManager[None]:
        """The inner method's step."""
        return self.inner.step()

    def fired(self) -> set[str]:
        """Sites of the inner method, and the token."""
        return self.inner.fired() | self.switch.fired

    def trainable(self) -> dict[str, Trained]:
        """The inner method's tensors under their own names, and the token."""
        own = {f"gist.{n}": Trained(p, "gist", True) for n, p in self.gist.items()}
        return {**self.inner.trainable(), **own}

    def idle(self) -> set[str]:
        """Those of the inner method, and a token that nothing sees where its losses weigh nothing.

        Where it is seen, it acts through attention, whatever they weigh.
        """
        unused = self.droppable() and not (self.method.gist.alpha or self.weights)
        return self.inner.idle() | ({TOKEN} if unused else set())

    def droppable(self) -> bool:
        """Whether there is a token that changes no logit of the text."""
        inserted = self.backbone.inserted
        slot = self.method.gist.slot
        return bool(self.gist) and inserted is not None and inserted.droppable(slot)

    def frozen(self) -> dict[str, Tensor]:
        """The inner method's."""
        return self.inner.frozen()

    def clusters(self, site: Site) -> Tensor:
        """The inner method's, (d_out, M)."""
        return self.inner.clusters(site)

    def merge_refusal(self) -> str | None:
        """The inner method's reason, or that the network has no registers for the token."""
        return self.inner.merge_refusal() or super().merge_refusal()

    @property
    def instead_of_merging(self) -> str:  # type: ignore[override]
        """The inner method's advice, or where the token is what keeps a text network from it."""
        if self.backbone.modality == "text" and self.inner.merge_refusal() is None:
            return "Keep the run directory, or train without the token (--no-gist)."
        return self.inner.instead_of_merging

    def register_rows(self) -> Tensor | None:
        """(P, D): the gist tokens, where they change logits, then what the inner method has."""
        own = [] if self.droppable() else [p.detach() for p in self.gist.values()]
        inner = self.inner.register_rows()
        rows = own if inner is None else [*own, inner]
        return torch.cat(rows) if rows else None

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        return self.inner._merged(head)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the backbone computes what it computed before `attach`, bit for bit."""
        was = self.switch.enabled
        with self.inner.disabled():
            self.switch.enabled = False
            try:
                yield
            finally:
                self.switch.enabled = was

    def detach(self) -> None:
        """Leave the backbone as it was before `attach`, however far that came."""
        inner = self._modules.get("inner")
        if isinstance(inner, Tuner):
            inner.detach()
        super().detach()

    # --- what is learnt from the token ------------------------------------------------------

    def auxiliary(
        self, features: Features, batch: Mapping[str, Tensor], criterion: Criterion, share: float
    ) -> dict[str, Tensor]:
        """The inner method's terms; alpha CE(g) as `gist`, lambda J as `interaction`.

        Several interactions are named `interaction/NAME`. Nothing of it without gradients.
        """
        terms = self.inner.auxiliary(features, batch, criterion, share)
        gist = self.method.gist
        acting = self.switch.enabled and torch.is_grad_enabled()
        if not acting or not (gist.alpha or self.weights):
            return terms
        z_BK, g_BK = features.logits, self.backbone.read_out(features, gist.slot)
        if gist.alpha:
            terms["gist"] = gist.alpha * criterion(g_BK)
        z_BK = z_BK.detach() if gist.detach == "cls" else z_BK
        g_BK = g_BK.detach() if gist.detach == "gist" else g_BK
        for name, weight in self.weights.items():
            key = "interaction" if len(self.weights) == 1 else f"interaction/{name}"
            terms[key] = weight * share * INTERACTIONS[name](z_BK, g_BK, gist.temperature)
        return terms

    def lengthens_backward(self) -> bool:
        """Whether only the token makes the backward pass go through the whole network."""
        if TOKEN not in self.trainable():
            return False
        trained = any(t.group == "method" for t in self.inner.trainable().values())
        layers: Layers = getattr(self.method.inner, "layers", "all")
        return not trained or 0 not in self.backbone.layer_numbers(layers)


def _require_place(backbone: Backbone, slot: str) -> None:
    if backbone.inserted is None:
        raise NotSupported(
            f"{backbone.architecture} takes no gist token: {backbone.token_refusal}.",
            "Leave the token out (--no-gist), or choose a plain ViT.",
        )
    if slot not in backbone.inserted.slots:
        raise NotSupported(
            f"gist.place: encoder is for encoder-decoders, and {backbone.architecture} is none.",
            "Leave gist.place out.",
        )


def _require_sight(backbone: Backbone) -> None:
    reason = None if backbone.inserted is None else backbone.inserted.unread("prompts")
    if reason is not None:
        raise NotSupported(
            f"gist.source: prompts has nothing to read: prompts of {backbone.architecture} "
            f"{reason}.",
            "Use gist.source: token.",
        )


def _outputs(backbone: Backbone) -> int:
    """Number of logits."""
    names = backbone.head_names()
    return len(backbone.model.get_parameter(names[-1])) if names else 0
