"""Method (what the recipe says) and Tuner (what is attached): the one interface of all methods."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from gistcli.backbones.base import Backbone
from gistcli.backbones.layout import Features
from gistcli.backbones.sites import Site, Switch
from gistcli.errors import NotMergeable, NotSupported, WeightsError
from gistcli.methods.merged import Merged, as_stored
from gistcli.methods.owning import OwnedParameters

Group = Literal["method", "gist", "head"]
Criterion = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recommended:
    """Optimiser settings that a method asks for where the recipe is silent."""

    lr: float
    head_lr: float
    weight_decay: float
    clip_norm: float | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a method with these options can do.

    Attributes:
        merge: None where it becomes plain weights, else the reason why not.
        clusters: `Tuner.clusters` exists.
        gateable: acts through sites and points only, so that a token gate reaches all of it.
        tokens: puts tokens into the sequence.
        low_rank: can be written as an exact LoRA folder.
        frozen_features: what the head reads does not depend on what is trained, and the tuner
            takes `pooled` (B, D) in a batch for it, in place of pixels.
    """

    merge: str | None
    clusters: bool = False
    gateable: bool = True
    tokens: bool = False
    low_rank: bool = False
    frozen_features: bool = False


@dataclass(frozen=True)
class Trained:
    """One trained tensor, its group in the optimiser, and whether weight decay applies."""

    parameter: nn.Parameter
    group: Group
    decay: bool


class Method(BaseModel, abc.ABC):
    """A method and its hyper-parameters: frozen, validated, attached to a backbone by `attach`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: ClassVar[str]
    """Name in the registry."""
    summary: ClassVar[str]
    """One line for `gist list methods`."""
    recommended: ClassVar[Mapping[str, Recommended]]
    """Optimiser settings by modality (`vision`)."""

    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this method can do with these options."""

    def label(self) -> str:
        """How a run calls itself: the name, and what a reader of its figures has to know."""
        return self.name

    def starts_as_base(self) -> bool:
        """Whether attaching changes no output yet; not so where the paper's start is random."""
        return True

    @abc.abstractmethod
    def attach(self, backbone: Backbone, *, head: bool = True) -> Tuner:
        """Put the method on a backbone, whose parameters are frozen from then on.

        Args:
            backbone: as `open_backbone` gives it, with the head that it is to have.
            head: train the head too; a second tuner on the same backbone leaves it to the first.

        Raises:
            NotSupported: the backbone is compiled, or is of a kind that cannot carry the method, or
                has nothing to train for it.
            UnknownName: a target that matches nothing.
        """


class Tuner(nn.Module):
    """A method attached to a backbone: it holds what is trained and drives the forward pass.

    The backbone stays outside this module's tree (an Objective registers both). Hooks read
    parameters through the tuner's attributes at every call: a captured Parameter would go on
    being used after it was replaced, by `load_state` or by sharding.
    """

    instead_of_merging: ClassVar[str] = (
        "Keep the run directory, or export with `gist merge --format onnx`."
    )
    """What to do where the method does not merge."""

    def __init_subclass__(cls) -> None:
        """Let every tuner leave the backbone as it was, where its own `__init__` refuses it."""
        super().__init_subclass__()
        own = cls.__init__

        @functools.wraps(own)
        def guarded(self: Tuner, *args: Any, **kwargs: Any) -> None:
            try:
                own(self, *args, **kwargs)
            except BaseException:
                if "switch" in self.__dict__:
                    self.detach()
                raise

        if "__init__" in cls.__dict__:
            cls.__init__ = guarded  # type: ignore[method-assign]

    def __init__(self, method: Method, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__()
        backbone.require_uncompiled()
        backbone.freeze()
        self.method = method
        object.__setattr__(self, "_backbone", backbone)
        self.owned = OwnedParameters(backbone)
        self.sites: list[Site] = []
        self.switch = Switch()
        if head:
            self.owned.take(backbone.head_names(), "head")

    @property
    def backbone(self) -> Backbone:
        """The network that this tuner drives."""
        backbone: Backbone = self.__dict__["_backbone"]
        return backbone

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """The only route to the backbone."""
        features: Features = self.backbone(batch)
        return features

    @property
    def hooks_only(self) -> bool:
        """Whether the network, called without this tuner, computes what `forward` does.

        Generation calls it so, token by token and with a cache.
        """
        return type(self).forward is Tuner.forward

    def start(self) -> None:
        """Called once before a fresh training, not where a trained state is loaded.

        For methods that start from files; they may be gone by the time the run is used.
        """

    def step(self) -> AbstractContextManager[None]:
        """Surrounds all micro-batches of one optimiser step, and evaluation."""
        return nullcontext()

    def fired(self) -> set[str]:
        """Names of the sites that have acted."""
        return self.switch.fired

    def own(self, names: Sequence[str]) -> None:
        """Train these parameters of the backbone: fresh float32 ones take their place."""
        self.owned.take(names, "method")

    def trainable(self) -> dict[str, Trained]:
        """Everything that is trained, by name, each shared tensor once."""
        found: dict[str, Trained] = {}
        for name, parameter in self.named_parameters():
            found[name] = Trained(parameter, "method", self.decays(name, parameter))
        for name, (parameter, group) in self.owned.items():
            assert name not in found, f"{name} is a parameter of the tuner and of the backbone"
            found[name] = Trained(parameter, group, parameter.ndim > 1)
        return found

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to one of the method's own tensors."""
        return parameter.ndim > 1

    def idle(self) -> set[str]:
        """Names of trained tensors that can get no gradient."""
        return set()

    def auxiliary(
        self, features: Features, batch: Mapping[str, Tensor], criterion: Criterion, share: float
    ) -> dict[str, Tensor]:
        """Further losses by name, each already weighted.

        Args:
            features: of the forward pass just made.
            batch: the micro-batch.
            criterion: (B, K) logits -> the task's own loss on them, as a share of the window's.
            share: the micro-batch's part of all units of the window; a mean over the micro-batch
                times this adds up to the mean over the window.
        """
        return {}

    def require_trainable(self) -> None:
        """Refuse a method that finds nothing to train.

        Raises:
            NotSupported: no trained tensor beside the head, in a method that is more than its head.
        """
        if not any(t.group == "method" for t in self.trainable().values()):
            raise NotSupported(
                f"{self.method.name} finds nothing to train in {self.backbone.architecture}.",
                "Choose other targets or layers, or another method.",
            )

    # --- state ------------------------------------------------------------------------------

    def frozen(self) -> dict[str, Tensor]:
        """The tuner's buffers: not trained, in no count, but what is trained means nothing without.

        They are part of the state, so that a run can be used when the file that they came from is
        gone (`register_buffer(..., persistent=False)` keeps a buffer out).
        """
        own = self.state_dict(keep_vars=True)
        return {name: t for name, t in own.items() if not isinstance(t, nn.Parameter)}

    def _tensors(self) -> dict[str, Tensor]:
        trained = {name: t.parameter for name, t in self.trainable().items()}
        return {**trained, **self.frozen()}

    def state(self) -> dict[str, Tensor]:
        """Everything trained, and the frozen tensors that belong to it, detached, by name."""
        return {name: tensor.detach() for name, tensor in self._tensors().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state; the tensors are copied to the device and dtype of those here.

        Raises:
            WeightsError: keys or shapes differ; all differences in one message.
        """
        own = self._tensors()
        problems = [f"missing {n}" for n in own if n not in state]
        problems += [f"unexpected {n}" for n in state if n not in own]
        for name in own.keys() & state.keys():
            here, there = tuple(own[name].shape), tuple(state[name].shape)
            if here != there:
                problems.append(f"{name} has shape {list(there)}, expected {list(here)}")
            elif own[name].is_meta or state[name].is_meta:
                problems.append(f"{name} has no storage (meta device)")
        if problems:
            raise WeightsError(
                f"The trained state does not fit {self.method.name}: {'; '.join(problems)}.",
                "Use the recipe and the backbone that the state was trained with.",
            )
        for name, tensor in state.items():
            own[name].data = tensor.detach().to(own[name], copy=True)

    # --- leaving ----------------------------------------------------------------------------

    def merge_refusal(self) -> str | None:
        """Why this network, tuned like this, cannot become plain weights; None where it can.

        The words of the start of a run and of `NotMergeable`; no tensor of the network is read,
        so that it can be asked on the meta device.
        """
        reason, rows_PD = self.method.capabilities().merge, self.register_rows()
        if reason is None and rows_PD is not None:
            try:
                self.backbone.register_tokens(rows_PD)
            except NotMergeable as error:
                reason = error.message.removesuffix(".")
        return reason

    def register_rows(self) -> Tensor | None:
        """(P, D): inserted tokens that become registers of the merged network, in their order.

        None for a tuner without such tokens.
        """
        return None

    def merge(self) -> Merged:
        """The tuned network as patches of the stored tensors; needs no backbone in memory.

        Raises:
            NotMergeable: with the reason and what to do.
        """
        reason = self.merge_refusal()
        if reason is not None:
            raise NotMergeable(
                f"{self.method.name} cannot become plain weights: {reason}.",
                self.instead_of_merging,
            )
        head = {n: p.detach() for n, (p, group) in self.owned.items() if group == "head"}
        merged = as_stored(self._merged(head), self.backbone.transposed_keys())
        rows_PD = self.register_rows()
        if rows_PD is None:
            return merged
        # registers hold what is trained of positions and earlier registers, so no patch is left
        new, model_args = self.backbone.register_tokens(rows_PD)
        return Merged(
            {key: patch for key, patch in merged.patches.items() if key not in new},
            {**merged.new, **new},
            model_args={**merged.model_args, **model_args},
            scalable=False,
        )

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        """`merge` in terms of weights (d_out, d_in), in whichever form the network keeps them."""
        raise NotImplementedError(f"{type(self).__name__} says that it merges")

    def clusters(self, site: Site) -> Tensor:
        """(d_out, M): directions of the site's output space, each a soft cluster of tokens.

        Raises:
            NotSupported: the method has no clusters.
        """
        raise NotSupported(
            f"{self.method.name} has no clusters to show.",
            "`gist list methods` shows which methods have them (gift).",
        )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the backbone computes what it computed before `attach`, bit for bit."""
        was = self.switch.enabled
        self.switch.enabled = False
        self.owned.swap_out()
        try:
            yield
        finally:
            self.switch.enabled = was
            self.owned.swap_in()

    def detach(self) -> None:
        """Leave the backbone as it was before `attach`."""
        self.switch.release()
        self.owned.release()

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a copied tuner would go on driving the original's backbone: attach anew")


def full_precision(shape: Sequence[int], like: Tensor) -> Tensor:
    """An empty float32 tensor on the device of `like`."""
    return torch.empty(*shape, dtype=torch.float32, device=like.device)
