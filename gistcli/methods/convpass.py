"""Convpass: a bottleneck with a 3x3 convolution over the grid of patches, beside every branch.

    y' = y + s (W_up g(conv(g(W_down x + b_down))) + b_up),  g = QuickGELU, x = LayerNorm(residual)

Paper: arXiv 2207.07039. Every token that is no patch is convolved as an image of one pixel, so that
the kernel's centre alone reaches it. Shape suffixes: B = images, T = tokens, H = bottleneck.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.images import require_images
from gistcli.backbones.layout import TokenLayout
from gistcli.backbones.sites import Blend
from gistcli.errors import NotSupported
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision
from gistcli.methods.bottleneck import Bottleneck, quick_gelu
from gistcli.methods.options import Layers

BRANCHES = {"both": ("attention", "mlp"), "attention": ("attention",), "mlp": ("mlp",)}


class Convpass(Method):
    """A small convolutional bypass beside attention and MLP, behind DropPath."""

    name: ClassVar[str] = "convpass"
    summary: ClassVar[str] = "a convolutional bottleneck beside attention and MLP"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-3, 3e-3, 1e-4, clip_norm=1.0)
    }

    dim: Annotated[int, Field(ge=1)] = 8
    """Bottleneck."""
    after: Literal["both", "attention", "mlp"] = "both"
    """The branches of a block beside which one stands."""
    layers: Layers = "all"
    """Block numbers from 0."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """s; the paper searches 0.01 to 100 for every task."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """In front of W_up, in training."""
    conv_init: Literal["identity", "xavier"] = "identity"
    """Start of the kernel: its centre the identity, or at random. The output starts at zero."""

    def capabilities(self) -> Capabilities:
        """Does not merge."""
        return Capabilities(merge="a non-linear convolution stands between its two maps")

    def attach(self, backbone: Backbone, *, head: bool = True) -> ConvpassTuner:
        """One module beside every chosen branch."""
        return ConvpassTuner(self, backbone, head=head)


class ConvpassModule(Bottleneck):
    """W_down (Xavier), the kernel (H, H, 3, 3) with its bias, W_up (zero)."""

    def __init__(self, method: Convpass, width: int, like: Tensor) -> None:
        super().__init__(width, method.dim, like)
        self.scale, self.dropout = method.scale, method.dropout
        nn.init.xavier_uniform_(self.down)
        nn.init.zeros_(self.up)
        self.kernel = nn.Parameter(full_precision((method.dim, method.dim, 3, 3), like))
        self.kernel_bias = nn.Parameter(full_precision((method.dim,), like).zero_())
        if method.conv_init == "xavier":
            nn.init.xavier_uniform_(self.kernel)
        else:
            nn.init.dirac_(self.kernel)

    def forward(self, x_BTD: Tensor, layout: TokenLayout) -> Tensor:
        """The bypass (B, T, D) of a sequence in that layout."""
        h_BTH = quick_gelu(self.convolve(quick_gelu(self.reduce(x_BTD)), layout))
        return self.expand(F.dropout(h_BTH, self.dropout, self.training), self.scale)

    def convolve(self, h_BTH: Tensor, layout: TokenLayout) -> Tensor:
        """(B, T, H): patches as a grid with zeros around it, other tokens one by one."""
        kernel, bias = self.kernel.to(h_BTH.dtype), self.kernel_bias.to(h_BTH.dtype)
        patches = layout.patches
        grid_BHRC = h_BTH[:, patches].unflatten(1, layout.grid).permute(0, 3, 1, 2)
        mixed = F.conv2d(grid_BHRC, kernel, bias, padding=1).flatten(2).mT
        others = [h_BTH[:, : patches.start], h_BTH[:, patches.stop :]]
        before, behind = (F.linear(other, kernel[:, :, 1, 1], bias) for other in others)
        return torch.cat([before, mixed, behind], dim=1)


class ConvpassTuner(Tuner):
    """Holds the modules, by block and branch."""

    method: Convpass

    def __init__(self, method: Convpass, backbone: Backbone, *, head: bool = True) -> None:
        _require_grid(backbone)
        layers = backbone.layer_numbers(method.layers)
        super().__init__(method, backbone, head=head)
        like = next(backbone.model.parameters())
        self.bypasses = nn.ModuleDict()
        for layer in layers:
            for after in BRANCHES[method.after]:
                point, key = backbone.point(after, layer), f"{layer}_{after}"
                self.bypasses[key] = ConvpassModule(method, point.width, like)
                point.map_output(self._blend(key), self.switch)
        self.require_trainable()

    def _blend(self, key: str) -> Blend:
        def blend(x_in: Tensor, y: Tensor, residual: Tensor) -> Tensor:
            update: Tensor = self.bypasses[key](x_in, self.backbone.layout)
            return y + update

        return blend


def _require_grid(backbone: Backbone) -> None:
    """Refuse a network that keeps no sequence in the order of its layout, as windowed ones do.

    Raises:
        NotSupported: with the family's reason.
    """
    require_images(backbone, Convpass.name)
    if backbone.inserted is None:
        raise NotSupported(
            f"convpass needs one sequence with the grid of patches in every block, which "
            f"{backbone.architecture} does not keep: {backbone.token_refusal}.",
            "Choose another method, or a plain ViT.",
        )
