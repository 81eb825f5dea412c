"""Adapters: a bottleneck with a non-linearity on the branches of every block.

    A(u) = s (W_up f(W_down u + b_down) + b_up)

The variants differ in what u is and where A(u) is added; all of them act behind DropPath.
Papers: houlsby arXiv 1902.00751; pfeiffer arXiv 2005.00247, in the form of NOAH (arXiv 2206.04673);
parallel arXiv 2312.07255; adaptformer arXiv 2205.13535; adapter_plus arXiv 2406.06820.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.sites import Blend, Point
from gistcli.errors import NotSupported
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner
from gistcli.methods.bottleneck import ACTIVATIONS, ActivationName, Bottleneck
from gistcli.methods.options import Layers

Start = Callable[[Tensor], Tensor]


def _truncated_normal(std: float) -> Start:
    return partial(nn.init.trunc_normal_, std=std, a=-2 * std, b=2 * std)


@dataclass(frozen=True)
class Form:
    """What a variant publishes.

    Attributes:
        after: the branches that it acts on.
        reads: u: the branch's output, the residual that the branch started from, or their sum.
        dim, scale, dropout, activation: the defaults.
        down, up: how the two weights start; biases start at zero.
        shared: one module serves both branches of a block.
        learned_scale: s is trained, one number per channel.
    """

    after: tuple[Literal["attention", "mlp"], ...]
    reads: Literal["output", "residual", "sum"]
    dim: int
    activation: ActivationName
    down: Start
    up: Start
    scale: float = 1.0
    dropout: float = 0.0
    shared: bool = False
    learned_scale: bool = False


FORMS: Mapping[str, Form] = {
    "houlsby": Form(
        ("attention", "mlp"), "output", 8, "gelu", _truncated_normal(0.01), _truncated_normal(0.01)
    ),
    # NOAH starts both weights by Xavier and VPT both at zero, which never trains: see Adapter.init
    "pfeiffer": Form(
        ("mlp",), "output", 8, "quick_gelu", nn.init.xavier_uniform_, nn.init.xavier_uniform_
    ),
    "parallel": Form(
        ("attention", "mlp"),
        "residual",
        4,
        "gelu",
        partial(nn.init.normal_, std=0.02),
        partial(nn.init.normal_, std=0.02),
        scale=0.1,
        shared=True,
    ),
    "adaptformer": Form(
        ("mlp",),
        "residual",
        64,
        "relu",
        partial(nn.init.kaiming_uniform_, a=math.sqrt(5)),
        nn.init.zeros_,
        scale=0.1,
        dropout=0.1,
    ),
    "adapter_plus": Form(
        ("mlp",),
        "sum",
        8,
        "gelu",
        _truncated_normal(0.01),
        _truncated_normal(0.01),
        learned_scale=True,
    ),
}


READS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "output": lambda y, residual: y,
    "residual": lambda y, residual: residual,
    "sum": torch.add,
}
"""u from the branch's output y and the residual."""


class Adapter(Method):
    """A small bottleneck network on the branches of every block."""

    name: ClassVar[str] = "adapter"
    summary: ClassVar[str] = "bottleneck adapters: Houlsby, Pfeiffer, parallel, AdaptFormer, +"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-3, 3e-3, 1e-4, clip_norm=1.0),
        "text": Recommended(1e-3, 1e-3, 0.0, clip_norm=1.0),
    }

    variant: Literal["houlsby", "pfeiffer", "parallel", "adaptformer", "adapter_plus"] = "pfeiffer"
    """Where the module sits. houlsby: on the output of both branches; pfeiffer: on that of the MLP;
    parallel (published with GIST): beside both branches, one module per block, reading the
    un-normalised residual; adaptformer: beside the MLP, reading the same; adapter_plus: behind the
    residual sum of the MLP, with a learned scale per channel."""
    dim: Annotated[int, Field(ge=1)] | None = None
    """Bottleneck; null is the variant's: 8, 8, 4, 64, 8 in the order above."""
    layers: Layers = "all"
    """Block numbers from 0."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """s; null is 0.1 for parallel and adaptformer, else 1. adapter_plus starts from it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Inside the bottleneck, in training; null is 0.1 for adaptformer, else 0."""
    activation: ActivationName | None = None
    """f; null is relu for adaptformer, quick_gelu for pfeiffer, else gelu."""
    init: Literal["published", "zero_up"] | None = None
    """zero_up starts W_up at zero, so that attaching changes nothing yet; published starts it as
    the variant's authors do (all at random but adaptformer); null is zero_up for pfeiffer, whose
    published starts are no use or far from the identity, else published."""

    @property
    def form(self) -> Form:
        """The variant with what the options change."""
        names = ("dim", "scale", "dropout", "activation")
        changes = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        if self.init == "zero_up" or (self.init is None and self.variant == "pfeiffer"):
            changes["up"] = nn.init.zeros_
        return replace(FORMS[self.variant], **changes)

    def starts_as_base(self) -> bool:
        """Whether W_up starts at zero."""
        return self.form.up is nn.init.zeros_

    def capabilities(self) -> Capabilities:
        """Does not merge."""
        return Capabilities(merge="a non-linearity stands between its two maps")

    def attach(self, backbone: Backbone, *, head: bool = True) -> AdapterTuner:
        """One module per chosen branch, or per block where the variant shares it."""
        return AdapterTuner(self, backbone, head=head)


class AdapterModule(Bottleneck):
    """W_down, W_up, their biases, and the scale: a number, or (D,) where it is learned."""

    scale: float | Tensor

    def __init__(self, form: Form, width: int, like: Tensor) -> None:
        super().__init__(width, form.dim, like)
        form.down(self.down)
        form.up(self.up)
        self.form, self.scale = form, form.scale
        if form.learned_scale:
            self.scale = nn.Parameter(torch.full_like(self.up_bias, form.scale))

    def forward(self, u: Tensor) -> Tensor:
        """A(u) (..., D)."""
        h = ACTIVATIONS[self.form.activation](self.reduce(u))
        if self.form.dropout:
            h = F.dropout(h, self.form.dropout, self.training)
        return self.expand(h, self.scale)


class AdapterTuner(Tuner):
    """Holds the modules, by block, or by block and branch."""

    method: Adapter

    def __init__(self, method: Adapter, backbone: Backbone, *, head: bool = True) -> None:
        points = _points(method, backbone)
        super().__init__(method, backbone, head=head)
        form, like = method.form, next(backbone.model.parameters())
        self.adapters = nn.ModuleDict()
        for point in points:
            key = f"{point.layer}" if form.shared else f"{point.layer}_{point.after}"
            if key not in self.adapters:
                self.adapters[key] = AdapterModule(form, point.width, like)
            point.map_output(self._blend(key, READS[form.reads]), self.switch)
        self.require_trainable()

    def _blend(self, key: str, read: Callable[[Tensor, Tensor], Tensor]) -> Blend:
        def blend(x_in: Tensor, y: Tensor, residual: Tensor) -> Tensor:
            update: Tensor = self.adapters[key](read(y, residual))
            return y + update

        return blend


def _points(method: Adapter, backbone: Backbone) -> list[Point]:
    """Where the variant acts.

    Raises:
        NotSupported: it reads a residual that has another shape than what it is to be added to.
    """
    layers = backbone.layer_numbers(method.layers)
    points = [backbone.point(after, layer) for layer in layers for after in method.form.after]
    if method.form.reads != "output":
        pooling = [str(point.layer) for point in points if not point.aligned]
        if pooling:
            raise NotSupported(
                f"adapter with variant {method.variant} reads the residual, but "
                f"{backbone.architecture} pools its tokens in block {', '.join(pooling)}.",
                "Use method.variant houlsby, pfeiffer, adaptformer or adapter_plus.",
            )
    return points
