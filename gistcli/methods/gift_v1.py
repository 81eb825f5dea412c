"""The first GIFT: a hyper-Transformer with PaCa that turns each weight W into its update dW.

Paper: arXiv 2312.00700v1, equations 5 to 16. Shape suffixes: L = layers (the batch of weights),
N = O = d_out (tokens), I = d_in, D = `dim`, M = clusters.
The recovery is linear, dW = H R^T + 1 b^T with H (O, D) from the last block and R (I, D): an update
of rank D (one more with the bias b), so dW itself is never made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.sites import Factors, Site
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision
from gistcli.methods.low_rank import merged_low_rank
from gistcli.methods.merged import Merged, Patch
from gistcli.methods.options import Layers, Targets
from gistcli.methods.paca import (
    ClusterAttention,
    MixingBlock,
    decays,
    full_float,
    idle,
    linear,
)


class GiftV1(Method):
    """Generate the update of every chosen layer from its own weights, by one hyper-Transformer."""

    name: ClassVar[str] = "gift_v1"
    summary: ClassVar[str] = "a hyper-Transformer over weights (PaCa) generates every update"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(1e-3, 3e-3, 1e-4, clip_norm=1.0),
        "text": Recommended(1e-3, 1e-3, 0.0, clip_norm=1.0),
    }

    dim: Annotated[int, Field(ge=1)] = 48
    """Width of a token in the hyper-Transformer, and rank of the updates."""
    targets: Targets = ("attn_out",)
    """Roles or names of the linear maps to tune; one hyper-Transformer for each shape."""
    layers: Layers = "all"
    """Block numbers from 0."""
    clusters: Annotated[int, Field(ge=1)] = 96
    """M, clusters of every block; those of the last block are the ones to look at."""
    blocks: Annotated[int, Field(ge=1)] = 4
    """Blocks of PaCa and FFN."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads; they divide `dim`."""
    ratio: Annotated[int, Field(ge=1)] = 2
    """Hidden width of the FFN, in multiples of `dim`."""
    theta: bool = True
    """Positional encoding theta_0 (d_out, d_in), added to every weight."""
    projection_bias: bool = False
    """Biases in reduction and recovery. What the recovery's adds is the same for all outputs, and
    so without effect on a map that writes to a residual stream which LayerNorm reads."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}")
        return self

    def capabilities(self) -> Capabilities:
        """Merges exactly, has clusters, and is exactly a LoRA."""
        return Capabilities(merge=None, clusters=True, low_rank=True)

    def attach(self, backbone: Backbone, *, head: bool = True) -> GiftV1Tuner:
        """Hook every target; theta_0 and the recovery start at zero, so nothing changes yet."""
        return GiftV1Tuner(self, backbone, head=head)


class Generator(nn.Module):
    """The hyper-Transformer of one shape of weights, in float32.

    Args:
        method: sizes.
        site: one of the sites that it serves.
    """

    theta: nn.Parameter | None

    def __init__(self, method: GiftV1, site: Site) -> None:
        super().__init__()
        like, dim = site.module.weight, method.dim
        theta_OI = full_precision((site.d_out, site.d_in), like).zero_() if method.theta else None
        self.register_parameter("theta", None if theta_OI is None else nn.Parameter(theta_OI))
        self.reduction = linear(site.d_in, dim, like, bias=method.projection_bias)
        self.blocks = nn.ModuleList(
            MixingBlock(
                ClusterAttention(dim, method.clusters, method.heads, like), dim, method.ratio, like
            )
            for _ in range(method.blocks)
        )
        self.recovery = linear(dim, site.d_in, like, bias=method.projection_bias)
        for parameter in self.recovery.parameters():
            nn.init.zeros_(parameter)

    def forward(self, weights_OI: Sequence[Tensor]) -> Tensor:
        """H (L, O, D) of L weights (O, I), each by itself (equations 5 to 8)."""
        with full_float(self.reduction.weight.device):
            h_LOD = self._reduced(weights_OI)
            for block in self.blocks:
                h_LOD = block(h_LOD)
            return h_LOD

    def assignments(self, weights_OI: Sequence[Tensor]) -> Tensor:
        """C (L, O, M) of the last block, between 0 and 1 / O (equation 14)."""
        *first, last = self.blocks
        with full_float(self.reduction.weight.device):
            h_LOD = self._reduced(weights_OI)
            for block in first:
                h_LOD = block(h_LOD)
            c_LOM: Tensor = last.mixing.assign(F.normalize(h_LOD, dim=-1))  # type: ignore[union-attr, operator]
            return c_LOM

    def _reduced(self, weights_OI: Sequence[Tensor]) -> Tensor:
        """(W + theta_0) A^T + a, where theta_0 is reduced once for all layers."""
        a_DI, bias = self.reduction.weight, self.reduction.bias
        w_LOD = torch.stack([F.linear(w_OI.detach().to(a_DI), a_DI) for w_OI in weights_OI])
        if self.theta is not None:
            w_LOD = w_LOD + F.linear(self.theta, a_DI)
        return w_LOD if bias is None else w_LOD + bias


class GiftV1Tuner(Tuner):
    """Holds one generator for each shape of weights; a site adds (x R) H^T to its output.

    H of all sites is generated at once, in front of the network and not by its hooks: gradient
    checkpointing, which runs hooks again, finds the same tensors. Inside `step` that happens once
    for all forward passes, else in each of them.
    """

    method: GiftV1

    def __init__(self, method: GiftV1, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        self.sites = backbone.sites(method.targets, method.layers)
        self.generators = nn.ModuleDict()
        self._groups: dict[str, list[Site]] = {}
        self._held: dict[str, Tensor] = {}
        self._stepping = False
        for site in self.sites:
            key = _key(site)
            if key not in self._groups:
                self.generators[key] = Generator(method, site)
            self._groups.setdefault(key, []).append(site)
            site.add_product(self._update(key, site.name), self.switch)
        self.switch.handles.append(backbone.register_forward_pre_hook(self._before_network))
        self.require_trainable()

    def _update(self, key: str, name: str) -> Factors:
        def factors(x: Tensor) -> tuple[Tensor, Tensor]:
            recovery, h_OD = self.generator(key).recovery, self._held[name]
            w_ID = recovery.weight
            if recovery.bias is not None:  # one more column, which every output reads alike
                w_ID = torch.cat([w_ID, recovery.bias.unsqueeze(1)], dim=1)
                h_OD = F.pad(h_OD, (0, 1), value=1.0)
            return x @ w_ID.to(x.dtype), h_OD

        return factors

    def generator(self, key: str) -> Generator:
        """The hyper-Transformer of a shape, named `OUTxIN`."""
        generator = self.generators[key]
        assert isinstance(generator, Generator)
        return generator

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Not biases, nor the cluster maps."""
        return decays(name, parameter)

    def idle(self) -> set[str]:
        """The key biases of the attention."""
        return idle(self)

    # --- generating -------------------------------------------------------------------------

    def _generate(self) -> dict[str, Tensor]:
        """H (O, D) by site name, with a graph where gradients are on."""
        found: dict[str, Tensor] = {}
        for key, sites in self._groups.items():
            h_LOD = self.generators[key]([site.weight() for site in sites])
            found.update(zip([s.name for s in sites], h_LOD.unbind(), strict=True))
        return found

    def _before_network(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.switch.enabled and not self._stepping:
            self._held = self._generate()

    @contextmanager
    def step(self) -> Iterator[None]:
        """One pass of the generator, and one backward pass through it on the way out.

        In between the network reads H from leaves, which collect the gradients of all
        micro-batches. Without gradients H is only generated once.
        """
        before = self._held, self._stepping
        made = self._generate() if self.switch.enabled else {}
        training = torch.is_grad_enabled()
        leaves = {n: h_OD.detach().requires_grad_(training) for n, h_OD in made.items()}
        self._held, self._stepping = leaves, self.switch.enabled
        try:
            yield
        finally:
            self._held, self._stepping = before
        reached = [n for n, leaf in leaves.items() if leaf.grad is not None]
        if reached:
            torch.autograd.backward([made[n] for n in reached], [leaves[n].grad for n in reached])

    # --- leaving ----------------------------------------------------------------------------

    @torch.no_grad()
    def clusters(self, site: Site) -> Tensor:
        """C (d_out, M) of the last block, standardised along d_out (equations 14 to 16)."""
        c_OM = self.generator(_key(site)).assignments([site.weight()])[0]
        centred_OM = c_OM - c_OM.mean(dim=0)
        deviation_M = centred_OM.square().mean(dim=0).sqrt()
        return centred_OM / deviation_M.clamp_min(torch.finfo(c_OM.dtype).tiny)

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        return merged_low_rank([(s, *_factors(self.generator(_key(s)))) for s in self.sites], head)


def _factors(generator: Generator) -> tuple[Tensor, Patch]:
    """dW = b(W) a, with the recovery's bias as a further row of `a` and a column of ones."""
    recovery = generator.recovery
    rows = [recovery.weight.detach().t()]
    if recovery.bias is not None:
        rows.append(recovery.bias.detach().unsqueeze(0))

    @torch.no_grad()
    def b(w_OI: Tensor) -> Tensor:
        h_OD: Tensor = generator([w_OI])[0].to(w_OI)
        return F.pad(h_OD, (0, len(rows) - 1), value=1.0)

    return torch.cat(rows).float(), b


def _key(site: Site) -> str:
    return f"{site.d_out}x{site.d_in}"
