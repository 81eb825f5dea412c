"""TOAST: a feedback path turns the output of a first pass into signals for a second one.

    z = LN_f(blocks(image))                     first pass, without a graph
    s_i = clamp(cos(z_i, xi), 0, 1)             tokens that matter for the task
    z <- (s z) P                                channels that matter
    z <- z A_l^T,  td_l = z B_l^T               for l = L, ..., 1: the feedback path
    V_l <- V_l + td_l W_v^T                     in every block of the second pass

Paper: arXiv 2305.15542 (analysis by synthesis: 2303.13043). Shape suffixes: B = batch, T = tokens,
D = width, R = rank.

The authors' code sends td_l through the whole fused map of query, key and value and keeps the rows
of the value with their bias, so that b_v is added twice. The paper's formula has W_v alone: it
leaves the network as it was while td_l is 0, and computes a third of the products.

The feedback path wants pre-tuning on a large set of images before it is tuned on a task; without
it, it stays behind prompt tuning (reviews of the paper). Both stages are runs:

    gist finetune --method toast --model MODEL --data IMAGES --set method.reconstruction=0.1 -o PATH
    gist finetune --method toast --model MODEL --data TASK --set method.weights=PATH
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.images import require_images
from gistcli.backbones.layout import Features
from gistcli.backbones.sites import Site, Tap
from gistcli.errors import NotSupported
from gistcli.methods.base import Capabilities, Criterion, Method, Recommended, Tuner, full_precision
from gistcli.methods.toast_feedback import Feedback, FeedbackOptions, read_feedback

LITE_ONLY = ("rank", "alpha")


class Toast(Method):
    """Run the network twice: the second time attends to what the task is about."""

    name: ClassVar[str] = "toast"
    summary: ClassVar[str] = "a second pass whose values are steered by the output of the first"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-4, 3e-3, 1e-4, clip_norm=1.0)
    }

    variant: Literal["full", "lite"] = "full"
    """full trains A, B and xi; lite trains a LoRA on each A and B, xi and P."""
    weights: Path | None = None
    """Pre-tuned feedback path: the run of the pre-tuning stage, or its tuner.safetensors."""
    reconstruction: Annotated[float, Field(ge=0)] = 0.0
    """Weight of sum_l MSE(A_l(out_l), in_l) over the blocks; 0.1 in the pre-tuning stage."""
    rank: Annotated[int, Field(ge=1)] = 4
    """Of the LoRA in `lite`."""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """The LoRA of `lite` is multiplied by alpha / rank."""
    init: Literal["identity", "normal"] = "identity"
    """Where A_l starts without `weights`: at I, or truncated normal of deviation 0.02."""

    @model_validator(mode="after")
    def _fits_the_variant(self) -> Self:
        for option in LITE_ONLY:
            default = type(self).model_fields[option].default
            if self.variant != "lite" and getattr(self, option) != default:
                raise ValueError(f"{option} acts with variant lite only")
        return self

    def label(self) -> str:
        """The name, with the variant, the stage, and whether the pre-tuning is missing."""
        notes = ["lite"] if self.variant == "lite" else []
        if self.reconstruction:
            notes.append("pre-tuning")
        elif self.weights is None:
            notes.append("no pre-tuning")
        return f"{self.name} ({', '.join(notes)})" if notes else self.name

    def capabilities(self) -> Capabilities:
        """Neither merges nor takes a gate: the second pass depends on the image as a whole."""
        reason = "what it adds depends on the output of a first pass over the same image"
        return Capabilities(merge=reason, gateable=False)

    def attach(self, backbone: Backbone, *, head: bool = True) -> ToastTuner:
        """Hook the value of every block; B_l starts at zero, so that nothing changes yet."""
        return ToastTuner(self, backbone, head=head)


@dataclass(eq=False)
class _Pass:
    """What the hooks of the second pass share.

    Attributes:
        signals: z (B, T, D) behind A_l, by layer; stays until the backward pass is over, because
            gradient checkpointing runs the hooks again.
        recording: inputs and outputs of the blocks are kept.
        inputs, outputs: (B, T, D) of the blocks, by layer, detached.
    """

    signals: list[Tensor] = field(default_factory=list)
    recording: bool = False
    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def clear(self) -> None:
        """Let go of all tensors."""
        self.signals = []
        self.inputs.clear()
        self.outputs.clear()


class ToastTuner(Tuner):
    """Holds xi (D,), A_l and B_l (D, D) of every block, and P (D, D) in `lite`.

    P of `full` stays the identity and is left out. No gradient flows into the first pass.
    Only this tuner's `forward` makes both passes, so it has to be the one that drives the network.
    """

    method: Toast

    def __init__(self, method: Toast, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        width = _require_carrier(backbone)
        self.sites = [site for site in backbone.all_sites() if site.role == "value"]
        _require_sites(self.sites, backbone)
        self._pass = _Pass()
        like = self.sites[0].module.weight
        self.xi = nn.Parameter(full_precision((width,), like).normal_())
        self.p: nn.Parameter | None = None
        if method.variant == "lite":
            self.p = nn.Parameter(nn.init.eye_(full_precision((width, width), like)))
        rank = method.rank if method.variant == "lite" else None
        pretuned = method.weights is not None
        options = FeedbackOptions(rank, method.alpha, method.init == "identity", pretuned)
        self.feedback = nn.ModuleList(Feedback(options, width, like) for _ in self.sites)
        for layer, site in enumerate(self.sites):
            site.add_output(self._signal(layer, site), self.switch)
            if method.reconstruction:
                self._record(layer)

    def layer(self, index: int) -> Feedback:
        """A_l and B_l of a block."""
        layer = self.feedback[index]
        assert isinstance(layer, Feedback)
        return layer

    # --- the two passes ---------------------------------------------------------------------

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Features of the second pass."""
        if not self.switch.enabled:
            return super().forward(batch)
        self._pass.clear()
        self._pass.signals = self._feed_back(self._first_pass(batch))
        self._pass.recording = torch.is_grad_enabled()
        try:
            return super().forward(batch)
        finally:
            self._pass.recording = False
            if not torch.is_grad_enabled():
                self._pass.clear()

    @torch.no_grad()
    def _first_pass(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, T, D) behind the last norm, with all tokens that the second pass will see."""
        self.switch.enabled = False
        try:
            return super().forward(batch).tokens
        finally:
            self.switch.enabled = True

    def _feed_back(self, z_BTD: Tensor) -> list[Tensor]:
        """z (B, T, D) behind A_l, by layer."""
        s_BT = self._select(z_BTD)
        z_BTD = (s_BT.unsqueeze(-1) * z_BTD.float()).to(z_BTD.dtype)
        if self.p is not None:
            z_BTD = z_BTD @ self.p.to(z_BTD.dtype)
        signals = []
        for layer in reversed(range(len(self.feedback))):
            z_BTD = self.layer(layer).descend(z_BTD)
            signals.append(z_BTD)
        return signals[::-1]

    def _select(self, z_BTD: Tensor) -> Tensor:
        """s (B, T), from 0 to 1."""
        return F.cosine_similarity(z_BTD.float(), self.xi, dim=-1).clamp(0, 1)

    def _signal(self, layer: int, site: Site) -> Callable[[Tensor], Tensor]:
        def add_output(x: Tensor) -> Tensor:
            if not self._pass.signals:
                raise NotSupported(
                    "toast makes two passes, and only its own tuner makes both.",
                    "Call the tuner of toast, not another one, nor the backbone itself.",
                )
            # td_l is computed here and not kept: its map to the value is frozen
            td_BTD = self.layer(layer).read(self._pass.signals[layer])
            return F.linear(td_BTD, site.weight().to(td_BTD.dtype))

        return add_output

    @contextmanager
    def step(self) -> Iterator[None]:
        """Nothing of the passes is kept beyond a step."""
        try:
            yield
        finally:
            self._pass.clear()

    # --- the pre-tuning stage ---------------------------------------------------------------

    def _record(self, layer: int) -> None:
        block, found = self.backbone.blocks[layer], self._pass

        def keeper(kept: dict[int, Tensor]) -> Callable[[Tensor], None]:
            def keep(x_BTD: Tensor) -> None:
                if found.recording and self.switch.enabled:
                    kept[layer] = x_BTD.detach()

            return keep

        self.switch.handles += [
            Tap(block).listen(keeper(found.inputs)),
            Tap(block, output=True).listen(keeper(found.outputs)),
        ]

    def auxiliary(
        self, features: Features, batch: Mapping[str, Tensor], criterion: Criterion, share: float
    ) -> dict[str, Tensor]:
        """The weighted reconstruction of every block's input from its output, where gradients are.

        sum_l MSE(A_l(sg(out_l)), sg(in_l)), averaged over the examples of the window.
        """
        found = self._pass
        if not found.outputs:
            return {}
        errors = [
            F.mse_loss(self.layer(i).descend(found.outputs[i]).float(), found.inputs[i].float())
            for i in range(len(self.feedback))
        ]
        return {"reconstruction": self.method.reconstruction * share * torch.stack(errors).sum()}

    # --- the start --------------------------------------------------------------------------

    @torch.no_grad()
    def start(self) -> None:
        """Read the pre-tuned feedback path; without one, turn xi to the side of the tokens.

        The clamp gives tokens on the other side neither signal nor gradient. Tokens have a large
        part in common, so that a random xi can have nearly all of them there: its sign is chosen
        by the network's tokens for one image of noise.

        Raises:
            NotFound, WeightsError, BaseMismatch: as `read_feedback`.
        """
        if self.method.weights is None:
            shape = require_images(self.backbone, "toast").data_config()["input_size"]
            noise = torch.randn(1, *shape, device=self.xi.device)
            z_BTD = self._first_pass({"pixels": noise})
            if F.cosine_similarity(z_BTD.float(), self.xi, dim=-1).mean() < 0:
                self.xi.neg_()
            return
        expected: dict[str, Tensor] = {"xi": self.xi}
        for i in range(len(self.feedback)):
            layer = self.layer(i)
            expected |= {f"feedback.{i}.a": layer.a, f"feedback.{i}.b": layer.b}
        found = read_feedback(self.method.weights, expected, self.backbone)
        for name, tensor in expected.items():
            tensor.copy_(found[name])

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """All of them, xi included, as in the authors' code."""
        return True


def _require_carrier(backbone: Backbone) -> int:
    """The width of a backbone whose blocks all see one sequence, that of its output."""
    require_images(backbone, Toast.name)
    width = backbone.require_one_width(Toast.name)
    if backbone.inserted is None:
        raise NotSupported(
            f"toast feeds the output tokens back to every block, but {backbone.architecture} does "
            "not keep one sequence of tokens.",
            "Choose another method, or a plain ViT.",
        )
    return width


def _require_sites(sites: list[Site], backbone: Backbone) -> None:
    if len(sites) != backbone.depth:
        raise NotSupported(
            f"toast needs a map to the value in every block, but {backbone.architecture} has "
            f"{len(sites)} in {backbone.depth} blocks.",
            "Choose another method, or a plain ViT.",
        )
    if any(site.parent is not None for site in sites):
        raise NotSupported(
            f"toast adds to the value what is no function of its input, but {backbone.architecture}"
            " reads the weight of that map instead of calling it.",
            "Choose another method, or a plain ViT.",
        )
