"""Backbone: a frozen pretrained network seen through roles, whatever its family."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gistcli.backbones.fingerprint import fingerprint, read_header
from gistcli.backbones.layout import Features
from gistcli.backbones.sites import Point, Site, Switch
from gistcli.errors import NotSupported, Refused, UnknownName, did_you_mean

Layers = Literal["all"] | Sequence[int]
MakeTokens = Callable[[int], Tensor]


@dataclass(frozen=True)
class Origin:
    """Where a backbone comes from.

    Attributes:
        name: as the user wrote it.
        architecture: the family's own name for the network.
        weights: safetensors files; empty where the network was built without weights.
        config: what the family needs to build it again (timm: model_args and pretrained_cfg).
    """

    name: str
    architecture: str
    weights: tuple[Path, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


class Backbone(nn.Module, abc.ABC):
    """A pretrained network, frozen, with named places for methods to act.

    `self.model` is the family's own module: its state-dict keys are never changed.
    """

    model: nn.Module
    origin: Origin

    @property
    def name(self) -> str:
        """The backbone as the user named it."""
        return self.origin.name

    @property
    def architecture(self) -> str:
        """The family's own name for the network."""
        return self.origin.architecture

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the stored tensors; empty for a network without weights."""
        return fingerprint(self.origin.weights) if self.origin.weights else ""

    @property
    def compiled(self) -> bool:
        """Whether torch.compile has seen this network: hooks added now would be ignored."""
        dynamo = ("_orig_mod", "_compiled_call_impl")
        return any(getattr(m, a, None) is not None for m in self.modules() for a in dynamo)

    @staticmethod
    @abc.abstractmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family."""

    # --- what a family provides -------------------------------------------------------------

    @abc.abstractmethod
    def data_config(self) -> dict[str, Any]:
        """Preprocessing in timm's terms: input_size (C, H, W), interpolation, mean, std, ..."""

    @abc.abstractmethod
    def reset_head(self, classes: int, seed: int = 0) -> None:
        """Give the network a new head for `classes`; defines what "base" means from here on."""

    @abc.abstractmethod
    def head_names(self) -> list[str]:
        """Names of the head's parameters in `self.model`, in order."""

    @abc.abstractmethod
    def all_sites(self) -> list[Site]:
        """Every linear map that has a role, in order; row slices beside the whole map."""

    @abc.abstractmethod
    def point(self, after: str, layer: int) -> Point:
        """The place behind `after` (attention, mlp or a role) in block `layer`."""

    @abc.abstractmethod
    def insert_tokens(self, slot: str, length: int, make: MakeTokens, switch: Switch) -> None:
        """Put `make(batch size)` (B, length, D) into the sequence, in front of the first norm.

        The tokens pass through every block and are taken out behind the last norm, so that pooling
        and head see what they saw before; `Features.tokens` keeps them.
        """

    @abc.abstractmethod
    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Features of `batch["pixels"]` (B, 3, H, W)."""

    @abc.abstractmethod
    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K) logits of the mean output of a slot, on the path from pooling to head."""

    @property
    @abc.abstractmethod
    def depth(self) -> int:
        """Number of blocks."""

    # --- what all families share ------------------------------------------------------------

    def freeze(self) -> None:
        """No parameter of the network asks for a gradient."""
        self.model.requires_grad_(False)

    def sites(self, targets: Sequence[str], layers: Layers = "all") -> list[Site]:
        """The sites that `targets` name in the chosen layers, in the order of the network.

        Args:
            targets: roles, the family's names at a dot boundary (`attn.proj`), or full paths.
            layers: "all", or block numbers; negative ones count from the end.

        Raises:
            UnknownName: a target that matches nothing, with what could have been meant.
            Refused: a layer that does not exist, or targets that overlap.
        """
        sites = self.all_sites()
        chosen = self.layer_numbers(layers)
        found: list[Site] = []
        missing: list[str] = []
        for target in targets:
            hits = [s for s in sites if _names(s, target)]
            found += [s for s in hits if s.layer in chosen and s not in found]
            if not hits:
                missing.append(target)
        if missing:
            known = {s.role for s in sites} | {_family_name(s) for s in sites}
            text = ", ".join(repr(m) for m in missing)
            hint = " ".join(did_you_mean(m, known) for m in missing)
            raise UnknownName(f"targets: {text} matches nothing in {self.name}.", hint)
        _refuse_overlap(found)
        order = {id(s): i for i, s in enumerate(sites)}
        return sorted(found, key=lambda s: order[id(s)])

    def layer_numbers(self, layers: Layers) -> list[int]:
        """Block numbers from 0, sorted, without duplicates.

        Raises:
            Refused: a number outside the network.
        """
        if layers == "all":
            return list(range(self.depth))
        bad = [n for n in layers if not -self.depth <= int(n) < self.depth]
        if bad or not layers:
            raise Refused(
                f"layers: {bad or 'none'} named, but {self.name} has {self.depth} layers.",
                f"Use numbers from 0 to {self.depth - 1} (or -{self.depth} to -1), or `all`.",
            )
        return sorted({int(n) % self.depth for n in layers})

    @contextmanager
    def capture(self, sites: Sequence[Site]) -> Iterator[dict[str, Tensor]]:
        """Outputs (B, T, d_out) of `sites` in the next forward pass, by site name.

        Taken after the hooks of the tuners that are attached by then.
        """
        seen: dict[str, Tensor] = {}

        def keep(site: Site) -> Callable[[nn.Module, Any, Tensor], None]:
            def hook(module: nn.Module, args: Any, y: Tensor) -> None:
                seen[site.name] = y if site.rows is None else y[..., site.rows]

            return hook

        handles = [s.module.register_forward_hook(keep(s)) for s in sites]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def parameter_owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a parameter of `self.model`, and its last name."""
        path, _, last = name.rpartition(".")
        return self.model.get_submodule(path), last

    def resampled(self) -> dict[str, Tensor]:
        """Tensors whose shape differs from the stored ones (another image size), by key."""
        stored = {k: v for path in self.origin.weights for k, v in read_header(path).items()}
        head = set(self.head_names())
        return {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if name in stored and name not in head and list(tensor.shape) != stored[name]["shape"]
        }

    def count(self) -> int:
        """Parameters of the network as it stands, head included."""
        return sum(p.numel() for p in self.model.parameters())

    def require_uncompiled(self) -> None:
        """Refuse a compiled network, whose hooks would be ignored without a word.

        Raises:
            NotSupported: torch.compile came before attach.
        """
        if self.compiled:
            raise NotSupported(
                f"{self.architecture} is already compiled: a method attached now would not act.",
                "Attach first, compile after.",
            )


def initialise_head(head: nn.Linear, seed: int) -> None:
    """Truncated normal of deviation 0.02 and zero bias, the same for the same seed."""
    if head.weight.device.type == "meta":
        return
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(head.weight.shape)
    nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04, generator=generator)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()


def _family_name(site: Site) -> str:
    """`attn.proj` for `blocks.3.attn.proj`."""
    return re.sub(r"^.*\.\d+\.", "", site.module_name)


def _names(site: Site, target: str) -> bool:
    if target in (site.role, site.name):
        return True
    whole_map = site.rows is None
    return whole_map and f".{site.module_name}".endswith(f".{target}")


def _refuse_overlap(sites: Sequence[Site]) -> None:
    wholes = {s.module_name for s in sites if s.rows is None}
    twice = sorted(s.name for s in sites if s.rows is not None and s.module_name in wholes)
    if twice:
        raise Refused(
            f"targets: {', '.join(twice)} is part of another target.",
            "Name the fused map or its slices, not both.",
        )
