"""LoRA: W_hat = W + s B A, with a pair (A, B) for every chosen linear map.

Papers: arXiv 2106.09685; 2312.03732 for s = alpha / sqrt(rank). Shape suffixes: O = d_out,
I = d_in, R = rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.sites import Factors, Site
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision
from gistcli.methods.low_rank import Fused, fuse, merged_low_rank, parameter_key
from gistcli.methods.merged import Merged, Patch
from gistcli.methods.options import Layers, Targets


class Lora(Method):
    """Add a low-rank product to every chosen linear map."""

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "W + s B A, one pair (A, B) for every linear map"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-3, 3e-3, 1e-4),
        "text": Recommended(5e-4, 1e-3, 0.0, clip_norm=1.0),
    }

    rank: Annotated[int, Field(ge=1)] = 8
    """Width between A and B."""
    alpha: Annotated[float, Field(gt=0)] = 8.0
    """The update is multiplied by alpha / rank."""
    targets: Targets = ("query", "value")
    """Roles or names of the linear maps to tune."""
    layers: Layers = "all"
    """Block numbers from 0."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on x where it enters A, in training."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead."""

    @property
    def scale(self) -> float:
        """s, the factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def capabilities(self) -> Capabilities:
        """Merges exactly, and is what PEFT calls LoRA."""
        return Capabilities(merge=None, low_rank=True)

    def attach(self, backbone: Backbone, *, head: bool = True) -> LoraTuner:
        """Hook every target; A starts Kaiming-uniform, B at zero, so that nothing changes yet."""
        return LoraTuner(self, backbone, head=head)


class LoraTuner(Tuner):
    """Holds A (R, I) and B (O, R) of every site.

    In activation form, y + (x A^T)(s B)^T; the slices of one fused map share both products, with
    the rows of A stacked and zeros in B where a slice has no rows.
    """

    method: Lora

    def __init__(self, method: Lora, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        self.sites = backbone.sites(method.targets, method.layers)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for site in self.sites:
            self._create(site)
        for fused in fuse(self.sites):
            fused.whole.add_product(self._activation_form(fused), self.switch)
        self.require_trainable()

    def _create(self, site: Site) -> None:
        key, rank, like = parameter_key(site.name), self.method.rank, site.module.weight
        # Kaiming-uniform with a = sqrt(5)
        bound = 1 / math.sqrt(site.d_in)
        self.a[key] = nn.Parameter(full_precision((rank, site.d_in), like).uniform_(-bound, bound))
        self.b[key] = nn.Parameter(full_precision((site.d_out, rank), like).zero_())

    def pair(self, site: Site) -> tuple[Tensor, Tensor]:
        """A (R, I) and B (O, R) of a site."""
        key = parameter_key(site.name)
        return self.a[key], self.b[key]

    def _factors(self, fused: Fused) -> tuple[Tensor, Tensor]:
        """A and s B of a whole module: (n R, I) and (O, n R) for n slices."""
        a, b = zip(*(self.pair(site) for site in fused.sites), strict=True)
        if len(fused.sites) == 1 and fused.sites[0].rows is None:
            return a[0], b[0] * self.method.scale
        columns = []
        for site, b_OR in zip(fused.sites, b, strict=True):
            rows = fused.rows(site)
            columns.append(F.pad(b_OR, (0, 0, rows.start, fused.whole.d_out - rows.stop)))
        return torch.cat(a), torch.cat(columns, dim=1) * self.method.scale

    def _activation_form(self, fused: Fused) -> Factors:
        def factors(x: Tensor) -> tuple[Tensor, Tensor]:
            fused.mark(self.switch)
            a_RI, b_OR = self._factors(fused)
            if self.method.dropout:
                x = F.dropout(x, self.method.dropout, self.training)
            return F.linear(x, a_RI.to(x.dtype)), b_OR

        return factors

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        return merged_low_rank([(site, *self._update(site)) for site in self.sites], head)

    def _update(self, site: Site) -> tuple[Tensor, Patch]:
        a_RI, b_OR = (factor.detach().float() for factor in self.pair(site))
        return a_RI, lambda w_OI: (b_OR * self.method.scale).to(w_OI)
