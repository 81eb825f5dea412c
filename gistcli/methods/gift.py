"""GIFT: W_hat = W (I + phi psi), with one (phi, psi) shared by many layers.

With a block g between the two, W_hat = W + g(W phi) psi: still an update of rank R.
Paper: arXiv 2312.00700 (v2 on). Shape suffixes: O = d_out, I = d_in, R = rank, T = tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.sites import Factors, Site
from gistcli.errors import Refused
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision
from gistcli.methods.gift_blocks import USED_BY, BlockName, BlockOptions, build_block
from gistcli.methods.low_rank import merged_low_rank, parameter_key
from gistcli.methods.merged import Merged, Patch
from gistcli.methods.options import Layers, Targets
from gistcli.methods.paca import decays, full_float, idle


class Gift(Method):
    """Generate the update of every chosen layer from its own weights, by one shared pair."""

    name: ClassVar[str] = "gift"
    summary: ClassVar[str] = "W (I + phi psi), one (phi, psi) shared by many layers"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-3, 3e-3, 1e-4, clip_norm=1.0),
        "text": Recommended(1e-3, 1e-3, 0.0, clip_norm=1.0),
    }

    rank: Annotated[int, Field(ge=1)] = 16
    """Width of phi and psi, and number of clusters."""
    targets: Targets = ("attn_out",)
    """Roles or names of the linear maps to tune."""
    layers: Layers = "all"
    """Block numbers from 0."""
    share: Literal["role", "all", "none"] = "role"
    """Which sites share one (phi, psi): those of a role, all, or none. Always by input width, and
    with `mlp_mixer` by output width too."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on x where it enters psi, in training."""
    scaling: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the update; the paper has none."""
    block: BlockName = "none"
    """g in W + g(W phi) psi: none is the identity; the others are those of the authors' code."""
    block_ratio: Annotated[int, Field(ge=1)] = 2
    """Hidden width of the block's MLP, in multiples of the rank."""
    heads: Annotated[int, Field(ge=1)] = 1
    """Attention heads of `transformer` and `paca`; they divide the rank."""
    clusters: Annotated[int, Field(ge=1)] = 64
    """Clusters inside `paca`."""
    mixed_tokens: Annotated[int, Field(ge=1)] = 64
    """Hidden width of the token mixing of `mlp_mixer`."""

    @model_validator(mode="after")
    def _fits_the_block(self) -> Self:
        for option, blocks in USED_BY.items():
            default = type(self).model_fields[option].default
            if self.block not in blocks and getattr(self, option) != default:
                raise ValueError(f"{option} acts with block {' or '.join(blocks)} only")
        if self.rank % self.heads:
            raise ValueError(f"rank {self.rank} is no multiple of heads {self.heads}")
        return self

    def capabilities(self) -> Capabilities:
        """Merges exactly, has clusters, and is exactly a LoRA."""
        return Capabilities(merge=None, clusters=True, low_rank=True)

    def attach(self, backbone: Backbone, *, head: bool = True) -> GiftTuner:
        """Hook every target; phi starts uniform, psi at zero, so that nothing changes yet."""
        return GiftTuner(self, backbone, head=head)


class GiftTuner(Tuner):
    """Holds phi (I, R), psi (R, I) and the block g of every group.

    Whole-row sites without a block run in activation form, (x + s x psi^T phi^T) W^T + b, which
    never touches W; row slices, and all sites with a block, as y + s (x psi^T) g(W phi)^T.
    """

    method: Gift

    def __init__(self, method: Gift, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        self.sites = backbone.sites(method.targets, method.layers)
        self.phi, self.psi = nn.ParameterDict(), nn.ParameterDict()
        self.blocks = nn.ModuleDict()
        self._held: dict[str, Tensor] = {}
        self._keys = _share(self.sites, method.share, by_output=method.block == "mlp_mixer")
        for site in self.sites:
            key = self._keys[site.name]
            if key not in self.phi:
                self._create(key, site)
            if site.rows is None and method.block == "none":
                site.map_input(self._activation_form(key), self.switch)
            else:
                site.add_product(self._weight_form(key, site), self.switch)
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
        if self.method.block != "none":
            method = self.method
            sizes = (method.block_ratio, method.heads, method.clusters, method.mixed_tokens)
            options = BlockOptions(rank, site.d_out, *sizes)
            self.blocks[key] = build_block(method.block, options, phi_IR)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Not biases, nor the cluster map of `paca`."""
        return decays(name, parameter)

    def idle(self) -> set[str]:
        """The key biases of attention blocks."""
        return idle(self)

    @contextmanager
    def step(self) -> Iterator[None]:
        """In evaluation, g(W phi) of every site is computed once."""
        before = self._held
        if self.blocks and self.switch.enabled and not torch.is_grad_enabled():
            self._held = {site.name: self._columns(site) for site in self.sites}
        try:
            yield
        finally:
            self._held = before

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

    def _weight_form(self, key: str, site: Site) -> Factors:
        def factors(x: Tensor) -> tuple[Tensor, Tensor]:
            phi_IR, psi_RI = self._pair(key, x.dtype)
            if self.blocks:
                held_OR = self._held.get(site.name)
                b_OR = (self._columns(site) if held_OR is None else held_OR).to(x.dtype)
            else:
                b_OR = site.weight().to(x.dtype) @ phi_IR
            return self._code(x, psi_RI), b_OR

        return factors

    def _columns(self, site: Site) -> Tensor:
        """g(W phi) (O, R) in float32."""
        key = self._keys[site.name]
        return _columns(site.weight(), self.phi[key], self._block(key))

    def _block(self, key: str) -> nn.Module | None:
        return self.blocks[key] if self.blocks else None

    def key_of(self, site: Site) -> str:
        """Name of the (phi, psi) that a site uses."""
        return self._keys[site.name]

    def clusters(self, site: Site) -> Tensor:
        """C = g(W phi) (d_out, R): the directions of output space into which the update writes."""
        return self._columns(site).detach()

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        parts = [(site, *self._factors(self._keys[site.name])) for site in self.sites]
        return merged_low_rank(parts, head)

    def _factors(self, key: str) -> tuple[Tensor, Patch]:
        phi_IR, block = self.phi[key].detach(), self._block(key)

        def b(w_OI: Tensor) -> Tensor:
            return _columns(w_OI.to(phi_IR), phi_IR, block).detach().to(w_OI)

        return self.psi[key].detach().float() * self.method.scaling, b


def _columns(w_OI: Tensor, phi_IR: Tensor, block: nn.Module | None) -> Tensor:
    """g(W phi) (O, R) in the dtype of phi."""
    with full_float(phi_IR.device):
        c_OR = w_OI.detach().to(phi_IR.dtype) @ phi_IR
        if block is None:
            return c_OR
        mapped_OR: Tensor = block(c_OR.unsqueeze(0)).squeeze(0)
        return mapped_OR


def _share(sites: list[Site], share: str, *, by_output: bool) -> dict[str, str]:
    """Site name -> name of its pair; widths are in the name only where a group has several."""
    groups = {
        s.name: parameter_key({"role": s.role, "all": "all", "none": s.name}[share]) for s in sites
    }
    widths = {s.name: f"{s.d_in}" + (f"x{s.d_out}" if by_output else "") for s in sites}
    found: dict[str, set[str]] = {}
    for site in sites:
        found.setdefault(groups[site.name], set()).add(widths[site.name])
    return {
        s.name: groups[s.name] + (f"_{widths[s.name]}" if len(found[groups[s.name]]) > 1 else "")
        for s in sites
    }
