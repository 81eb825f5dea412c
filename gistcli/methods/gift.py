"""GIFT: W_hat = W (I + phi psi), with one (phi, psi) shared by many layers.

Paper: arXiv 2312.00700 (v2 on). Shape suffixes: O = d_out, I = d_in, R = rank, T = tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.sites import Site
from gistcli.errors import Refused
from gistcli.methods.base import (
    Capabilities,
    LowRank,
    Merged,
    Method,
    Patch,
    Recommended,
    Tuner,
    full_precision,
)


class Gift(Method):
    """Generate the update of every chosen layer from its own weights, by one shared pair."""

    name: ClassVar[str] = "gift"
    summary: ClassVar[str] = "W (I + phi psi), one (phi, psi) shared by many layers"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-3, 3e-3, 1e-4, clip_norm=1.0)
    }

    rank: Annotated[int, Field(ge=1)] = 16
    """Width of phi and psi, and number of clusters."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("attn_out",)
    """Roles or names of the linear maps to tune."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Block numbers from 0."""
    share: Literal["role", "all", "none"] = "role"
    """Which sites share one (phi, psi): those of a role, all, or none. Always by input width."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on x where it enters psi, in training."""
    scaling: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the update; the paper has none."""

    def capabilities(self) -> Capabilities:
        """Merges exactly, has clusters, and is exactly a LoRA."""
        return Capabilities(merge=None, clusters=True, low_rank=True)

    def attach(self, backbone: Backbone, *, head: bool = True) -> GiftTuner:
        """Hook every target; phi starts uniform, psi at zero, so that nothing changes yet."""
        return GiftTuner(self, backbone, head=head)


class GiftTuner(Tuner):
    """Holds phi (I, R) and psi (R, I) of every group.

    Whole-row sites run in activation form, (x + s x psi^T phi^T) W^T + b, which never touches W;
    row slices in the form y + s (x psi^T)(W phi)^T.
    """

    method: Gift

    def __init__(self, method: Gift, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        self.sites = backbone.sites(method.targets, method.layers)
        self.phi, self.psi = nn.ParameterDict(), nn.ParameterDict()
        self._keys = _share(self.sites, method.share)
        for site in self.sites:
            key = self._keys[site.name]
            if key not in self.phi:
                self._create(key, site)
            if site.rows is None:
                site.map_input(self._activation_form(key), self.switch)
            else:
                site.add_output(self._weight_form(key, site), self.switch)
        self.require_trainable()

    def _create(self, key: str, site: Site) -> None:
        rank = self.method.rank
        if rank > site.d_in:
            raise Refused(
                f"method.rank is {rank}, but {site.name} reads only {site.d_in} features.",
                f"Use a rank of at most {site.d_in}.",
            )
        bound = 1 / math.sqrt(site.d_in)
        phi_IR = full_precision((site.d_in, rank), site.module.weight).uniform_(-bound, bound)
        self.phi[key] = nn.Parameter(phi_IR)
        self.psi[key] = nn.Parameter(torch.zeros_like(phi_IR.t()).contiguous())

    def _pair(self, key: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """phi, and psi times the scaling, in the dtype of the activations."""
        phi_IR, psi_RI = self.phi[key], self.psi[key]
        scaling = self.method.scaling
        psi_RI = psi_RI if scaling == 1 else psi_RI * scaling
        return phi_IR.to(dtype), psi_RI.to(dtype)

    def _code(self, x: Tensor, psi_RI: Tensor) -> Tensor:
        x = F.dropout(x, self.method.dropout, self.training) if self.method.dropout else x
        return F.linear(x, psi_RI)

    def _activation_form(self, key: str) -> Callable[[Tensor], Tensor]:
        def map_input(x: Tensor) -> Tensor:
            phi_IR, psi_RI = self._pair(key, x.dtype)
            code = self._code(x, psi_RI)
            # one kernel for product and sum, no tensor of the update
            new = torch.addmm(x.flatten(0, -2), code.flatten(0, -2).to(x.dtype), phi_IR.t())
            return new.view(x.shape)

        return map_input

    def _weight_form(self, key: str, site: Site) -> Callable[[Tensor], Tensor]:
        def add_output(x: Tensor) -> Tensor:
            phi_IR, psi_RI = self._pair(key, x.dtype)
            return F.linear(self._code(x, psi_RI), site.weight().to(x.dtype) @ phi_IR)

        return add_output

    def key_of(self, site: Site) -> str:
        """Name of the (phi, psi) that a site uses."""
        return self._keys[site.name]

    def clusters(self, site: Site) -> Tensor:
        """C = W phi (d_out, R): the directions of output space into which the update writes."""
        phi_IR = self.phi[self._keys[site.name]].detach()
        return site.weight().detach().to(phi_IR.dtype) @ phi_IR

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        by_module: dict[str, list[tuple[Site, Tensor, Tensor]]] = {}
        for site in self.sites:
            key = self._keys[site.name]
            phi_IR = self.phi[key].detach().float()
            psi_RI = self.psi[key].detach().float() * self.method.scaling
            by_module.setdefault(site.module_name, []).append((site, phi_IR, psi_RI))
        low_rank = {name: _low_rank(parts) for name, parts in by_module.items()}
        patches = {f"{name}.weight": _patch(update) for name, update in low_rank.items()}
        return Merged(patches, head, low_rank=low_rank)


def _share(sites: list[Site], share: str) -> dict[str, str]:
    """Site name -> name of its pair; widths are in the name only where a group has several."""
    groups = {
        s.name: re.sub(r"\W+", "_", {"role": s.role, "all": "all", "none": s.name}[share]).strip(
            "_"
        )
        for s in sites
    }
    widths: dict[str, set[int]] = {}
    for site in sites:
        widths.setdefault(groups[site.name], set()).add(site.d_in)
    return {
        s.name: groups[s.name] + (f"_{s.d_in}" if len(widths[groups[s.name]]) > 1 else "")
        for s in sites
    }


def _low_rank(parts: list[tuple[Site, Tensor, Tensor]]) -> LowRank:
    """dW = B A with A = psi (stacked over row slices) and B = W phi on each slice's own rows."""
    a_RI = torch.cat([psi_RI for _, _, psi_RI in parts])

    def b(w_OI: Tensor) -> Tensor:
        blocks = []
        for site, phi_IR, _ in parts:
            rows = site.rows or slice(0, w_OI.shape[0])
            b_OR = w_OI.new_zeros(w_OI.shape[0], phi_IR.shape[1])
            b_OR[rows] = w_OI[rows] @ phi_IR.to(w_OI)
            blocks.append(b_OR)
        return torch.cat(blocks, dim=1)

    return LowRank(a_RI, b)


def _patch(update: LowRank) -> Patch:
    def patch(w_OI: Tensor) -> Tensor:
        return w_OI + update.b(w_OI) @ update.a.to(w_OI)

    return patch
