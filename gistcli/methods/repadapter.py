"""RepAdapter: affine adapters in front of attention and MLP, which become weights (2302.08106).

x' = x + s (B drop(A x + a) + b) with B in groups, so that the linear map behind it merges exactly:
W' = W (I + s B A), c' = c + s W (B a + b) for y = W x + c. Shape suffixes: D = width, H = `dim`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.sites import Site
from gistcli.errors import Refused
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision
from gistcli.methods.merged import Merged, Patch
from gistcli.methods.options import Layers

Place = Literal["attention", "mlp"]
ROLES: dict[Place, tuple[tuple[str, ...], ...]] = {
    "attention": (("qkv",), ("query", "key", "value")),
    "mlp": (("fc_in", "fc_gate"),),
}
"""The maps that read the input of attention or MLP: the first of these groups that there is."""


class RepAdapter(Method):
    """Put an affine bottleneck in front of attention and MLP."""

    name: ClassVar[str] = "repadapter"
    summary: ClassVar[str] = "affine adapters before attention and MLP, merged into the weights"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(1e-3, 3e-3, 1e-4),
        "text": Recommended(1e-3, 1e-3, 0.0, clip_norm=1.0),
    }

    dim: Annotated[int, Field(ge=1)] = 8
    """Width of the bottleneck."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the adapter's output. The paper tunes it for every task, from 0.1 to 10."""
    groups: Annotated[int, Field(ge=1)] = 2
    """Groups of B: each writes its part of the width from its part of the bottleneck."""
    targets: Annotated[tuple[Place, ...], Field(min_length=1)] = ("attention", "mlp")
    """In front of what adapters stand."""
    layers: Layers = "all"
    """Block numbers from 0."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout in the bottleneck, in training."""

    @model_validator(mode="after")
    def _groups_divide_the_bottleneck(self) -> Self:
        if self.dim % self.groups:
            raise ValueError(f"dim {self.dim} is no multiple of groups {self.groups}")
        return self

    def capabilities(self) -> Capabilities:
        """Merges exactly where the maps have biases; the biases change, so it is no LoRA."""
        return Capabilities(merge=None)

    def attach(self, backbone: Backbone, *, head: bool = True) -> RepAdapterTuner:
        """Hook the maps behind every adapter; B starts at zero, so that nothing changes yet."""
        return RepAdapterTuner(self, backbone, head=head)


class RepAdapterTuner(Tuner):
    """Holds A (H, D), a (H,), B (D, H / groups) and b (D,) of every adapter.

    Where query, key and value are modules of their own, one adapter serves all three.
    """

    method: RepAdapter

    def __init__(self, method: RepAdapter, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        readers = _readers(backbone, method)
        self.sites = [site for several in readers.values() for site in several]
        self._keys = {site.name: key for key, several in readers.items() for site in several}
        self.down, self.down_bias = nn.ParameterDict(), nn.ParameterDict()
        self.up, self.up_bias = nn.ParameterDict(), nn.ParameterDict()
        self._held: dict[str, tuple[Tensor, Tensor]] = {}
        for key, several in readers.items():
            self._create(key, several[0])
            for site in several:
                site.map_input(self._adapter(key, last=site is several[-1]), self.switch)
        self.require_trainable()

    def _create(self, key: str, site: Site) -> None:
        dim, width, like = self.method.dim, site.d_in, site.module.weight
        self.down[key] = nn.Parameter(nn.init.xavier_uniform_(full_precision((dim, width), like)))
        self.down_bias[key] = nn.Parameter(full_precision((dim,), like).zero_())
        up_DH = full_precision((width, dim // self.method.groups), like)
        self.up[key] = nn.Parameter(up_DH.zero_())
        self.up_bias[key] = nn.Parameter(full_precision((width,), like).zero_())

    def _up(self, key: str) -> Tensor:
        """s B and s b as one matrix (H + 1, D) for (code, 1), with zeros between groups."""
        blocks = self.up[key].chunk(self.method.groups)
        up_HD = torch.block_diag(*[block.t() for block in blocks])
        return torch.cat([up_HD, self.up_bias[key][None]]) * self.method.scale

    def _adapter(self, key: str, *, last: bool) -> Callable[[Tensor], Tensor]:
        def map_input(x: Tensor) -> Tensor:
            # the readers of one input share what the first of them computed, and its dropout
            held = self._held.pop(key, None)
            new = held[1] if held is not None and held[0] is x else self._adapted(key, x)
            if not last:
                self._held[key] = (x, new)
            return new

        return map_input

    def _adapted(self, key: str, x: Tensor) -> Tensor:
        code = F.linear(x, self.down[key].to(x.dtype), self.down_bias[key].to(x.dtype))
        if self.method.dropout:
            code = F.dropout(code, self.method.dropout, self.training)
        code = F.pad(code, (0, 1), value=1.0).flatten(0, -2).to(x.dtype)
        # product, shift and sum in one kernel, no tensor of the update
        return torch.addmm(x.flatten(0, -2), code, self._up(key).to(x.dtype)).view(x.shape)

    def merge_refusal(self) -> str | None:
        """A map without a bias, which could take up the adapter's shift."""
        without = [site.name for site in self.sites if site.module.bias is None]
        if not without:
            return super().merge_refusal()
        return (
            f"{without[0]} has no bias that could hold the adapter's shift "
            f"({len(without)} maps of {self.backbone.architecture} have none)"
        )

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        patches: dict[str, Patch] = {}
        for site in self.sites:
            key = self._keys[site.name]
            up = self._up(key).detach()
            down_HD, up_HD = self.down[key].detach(), up[:-1]
            shift_D = self.down_bias[key].detach() @ up_HD + up[-1]
            patches[f"{site.module_name}.weight"] = _weight_patch(down_HD, up_HD)
            shift_O = site.weight().detach().float() @ shift_D
            patches[f"{site.module_name}.bias"] = _bias_patch(shift_O)
        return Merged(patches, head)


def _readers(backbone: Backbone, method: RepAdapter) -> dict[str, list[Site]]:
    """Adapter -> the whole maps that read its output, in the order of the network.

    Raises:
        Refused: a width that is no multiple of the groups.
    """
    layers = backbone.layer_numbers(method.layers)
    wholes = [site for site in backbone.all_sites() if site.rows is None and site.layer in layers]
    found: dict[str, list[Site]] = {}
    for layer in layers:
        for place in method.targets:
            for roles in ROLES[place]:
                several = [s for s in wholes if s.layer == layer and s.role in roles]
                if several:
                    found[f"{layer}_{place}"] = several
                    break
    odd = [s for several in found.values() for s in several if s.d_in % method.groups]
    if odd:
        raise Refused(
            f"method.groups is {method.groups}, but {odd[0].name} reads {odd[0].d_in} features.",
            "Use a number of groups that divides the width.",
        )
    return found


def _weight_patch(down_HD: Tensor, up_HD: Tensor) -> Patch:
    def patch(w_OD: Tensor) -> Tensor:
        return w_OD + (w_OD @ up_HD.t().to(w_OD)) @ down_HD.to(w_OD)

    return patch


def _bias_patch(shift_O: Tensor) -> Patch:
    def patch(bias_O: Tensor) -> Tensor:
        return bias_O + shift_O.to(bias_O)

    return patch
