"""FacT: all updates of a network as one tensor, factored (arXiv 2212.03145).

Every linear map is cut into square slices of the network's width D, and the update of a slice is
s U S V with U (D, R) and V (R, D) shared by the whole network, written for x W. The small S (R, R)
is a matrix of its own for every slice (`tt`), or C x_3 P_i from a core C (R, R, R) and a column of
P (R, slices) that the network shares too (`tk`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.sites import Factors
from gistcli.errors import NotSupported
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision
from gistcli.methods.low_rank import Fused, fuse, merged_low_rank, parameter_key
from gistcli.methods.merged import Merged, Patch
from gistcli.methods.options import Layers, Targets


class Fact(Method):
    """Share the outer factors of all updates across the network."""

    name: ClassVar[str] = "fact"
    summary: ClassVar[str] = "W + s U S V with U, V shared by the whole network"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(1e-2, 3e-3, 1e-4),
        "text": Recommended(1e-3, 1e-3, 0.0, clip_norm=1.0),
    }

    variant: Literal["tt", "tk"] = "tt"
    """tt: a matrix S for every slice; tk: these are factored once more. tt at its largest published
    rank is smaller than tk at its own, and a product of fewer factors is easier to train."""
    rank: Annotated[int, Field(ge=1)] = 16
    """R. The paper's largest is 16 for tt and 32 for tk."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """s. The paper tunes it for every task, from 0.01 to 100."""
    targets: Targets = (
        "query",
        "key",
        "value",
        "attn_out",
        "fc_in",
        "fc_out",
    )
    """Roles or names of the linear maps to tune."""
    layers: Layers = "all"
    """Block numbers from 0."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout between S and V, in training."""

    def capabilities(self) -> Capabilities:
        """Merges exactly, and is exactly a LoRA."""
        return Capabilities(merge=None, low_rank=True)

    def attach(self, backbone: Backbone, *, head: bool = True) -> FactTuner:
        """Hook every target; V starts at zero, so that nothing changes yet."""
        return FactTuner(self, backbone, head=head)


@dataclass(frozen=True, eq=False)
class Cut:
    """A linear map as `inputs` x `outputs` square slices.

    Attributes:
        fused: the map, and which of its rows were chosen.
        width: D, rows and columns of a slice.
        chosen: numbers of the row slices that are tuned, out of `outputs`.
    """

    fused: Fused
    width: int
    inputs: int
    outputs: int
    chosen: tuple[int, ...]

    @property
    def key(self) -> str:
        """Name of the shared factors."""
        return str(self.width)

    @property
    def slices(self) -> int:
        """Number of tuned slices."""
        return self.inputs * len(self.chosen)


class FactTuner(Tuner):
    """Holds U (D, R) and V (R, D), and what makes S, for every width D in the network.

    tt: `core` (n R, m R) of every map of n x m slices; tk: `core` C (R, R, R) and `columns` P of
    every width. In activation form: x U, S and V one after the other, with dropout before V.
    """

    method: Fact

    def __init__(self, method: Fact, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        self.sites = backbone.sites(method.targets, method.layers)
        self._cuts = [_cut(fused) for fused in fuse(self.sites)]
        self.u, self.v = nn.ParameterDict(), nn.ParameterDict()
        self.core, self.columns = nn.ParameterDict(), nn.ParameterDict()
        self._first: dict[str, int] = {}
        used: dict[str, int] = {}
        for cut in self._cuts:
            self._first[cut.fused.whole.name] = used.get(cut.key, 0)
            used[cut.key] = used.get(cut.key, 0) + cut.slices
        for cut in self._cuts:
            self._create(cut, used[cut.key])
            cut.fused.whole.add_product(self._activation_form(cut), self.switch)
        self.require_trainable()

    def _create(self, cut: Cut, slices: int) -> None:
        """U and S start as `nn.Linear` does (tt), C and P Xavier-uniform (tk), V at zero."""
        rank, like = self.method.rank, cut.fused.whole.module.weight
        fresh = cut.key not in self.u
        if fresh:
            self.u[cut.key] = nn.Parameter(_as_linear(full_precision((cut.width, rank), like)))
            self.v[cut.key] = nn.Parameter(full_precision((rank, cut.width), like).zero_())
        if self.method.variant == "tt":
            shape = (cut.inputs * rank, len(cut.chosen) * rank)
            key = parameter_key(cut.fused.whole.name)
            self.core[key] = nn.Parameter(_as_linear(full_precision(shape, like)))
        elif fresh:
            core_RRR = full_precision((rank, rank, rank), like)
            columns_RS = full_precision((rank, slices), like)
            self.core[cut.key] = nn.Parameter(nn.init.xavier_uniform_(core_RRR))
            self.columns[cut.key] = nn.Parameter(nn.init.xavier_uniform_(columns_RS))

    def inner(self, cut: Cut) -> Tensor:
        """S of all slices of a map, (inputs R, outputs R); zero where rows are not tuned."""
        rank, tuned = self.method.rank, len(cut.chosen)
        if self.method.variant == "tt":
            s = self.core[parameter_key(cut.fused.whole.name)]
        else:
            first = self._first[cut.fused.whole.name]
            columns_RS = self.columns[cut.key][:, first : first + cut.slices]
            s = (self.core[cut.key] @ columns_RS).view(rank, rank, cut.inputs, tuned)
            s = s.permute(2, 0, 3, 1).reshape(cut.inputs * rank, tuned * rank)
        if tuned == cut.outputs:
            return s
        every = s.new_zeros(len(s), cut.outputs, rank)
        every[:, list(cut.chosen)] = s.view(len(s), tuned, rank)
        return every.flatten(1)

    def _activation_form(self, cut: Cut) -> Factors:
        def factors(x: Tensor) -> tuple[Tensor, Tensor]:
            cut.fused.mark(self.switch)
            u_DR, v_RD = self.u[cut.key], self.v[cut.key] * self.method.scale
            code = x.unflatten(-1, (cut.inputs, cut.width)) @ u_DR.to(x.dtype)
            code = code.flatten(-2) @ self.inner(cut).to(code.dtype)
            if self.method.dropout:
                code = F.dropout(code, self.method.dropout, self.training)
            return code, v_RD.t()

        return factors

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        return merged_low_rank([(c.fused.whole, *self._update(c)) for c in self._cuts], head)

    def _update(self, cut: Cut) -> tuple[Tensor, Patch]:
        """dW = (U S V)^T; S goes to the side that leaves the smaller rank."""
        u_DR, v_RD = self.u[cut.key].detach(), self.v[cut.key].detach() * self.method.scale
        u = torch.block_diag(*[u_DR] * cut.inputs)
        v = torch.block_diag(*[v_RD] * cut.outputs)
        s = self.inner(cut).detach()
        left, right = (u, s @ v) if cut.inputs <= cut.outputs else (u @ s, v)
        return left.t().contiguous(), lambda w_OI: right.t().to(w_OI)


def _as_linear(matrix: Tensor) -> Tensor:
    """Fill a matrix (d_in, d_out) as `nn.Linear` starts its weight."""
    bound = 1 / math.sqrt(matrix.shape[0])
    return matrix.uniform_(-bound, bound)


def _cut(fused: Fused) -> Cut:
    """The slices of a module, each as wide as the narrowest side of a chosen map.

    Raises:
        NotSupported: its sides are no multiples of that.
    """
    d_in, d_out = fused.whole.d_in, fused.whole.d_out
    width = min(d_in, *(site.d_out for site in fused.sites))
    rows = [fused.rows(site) for site in fused.sites]
    if any(side % width for r in rows for side in (d_in, d_out, r.start, r.stop)):
        raise NotSupported(
            f"fact cuts every map into squares of one width, but {fused.whole.name} has "
            f"{d_in} inputs and {d_out} outputs.",
            "Use method.targets without such maps (query key value attn_out), or another method.",
        )
    chosen = sorted(i for r in rows for i in range(r.start // width, r.stop // width))
    return Cut(fused, width, d_in // width, d_out // width, tuple(chosen))
