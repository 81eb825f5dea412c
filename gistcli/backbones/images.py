"""What all families that read pictures share."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from gistcli.backbones.base import Backbone, Modality, Ran
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.sites import Site
from gistcli.errors import NotSupported


class ImageBackbone(Backbone):
    """A network over the patches of pictures."""

    modality: ClassVar[Modality] = "vision"

    @abc.abstractmethod
    def data_config(self) -> dict[str, Any]:
        """Preprocessing in timm's terms: input_size (C, H, W), interpolation, mean, std, ..."""

    @abc.abstractmethod
    def layout_of(self, pixels: Tensor) -> TokenLayout:
        """Where each kind of token stands for pixels (B, 3, H, W), without inserted ones."""

    @abc.abstractmethod
    def run(self, pixels: Tensor) -> Ran:
        """One forward pass of the network on pixels (B, 3, H, W)."""

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Features of `batch["pixels"]` (B, 3, H, W)."""
        pixels = batch["pixels"]
        return self.drive(self.layout_of(pixels), lambda: self.run(pixels))

    def patch_map(self, site: Site, y: Tensor) -> Tensor:
        """(B, h, w, d_out): what a site gave in the last forward pass, at its patch tokens.

        Raises:
            NotSupported: the family keeps no grid of patches there.
        """
        return y[:, self.layout.patches].unflatten(1, self.layout.grid)


def require_images(backbone: Backbone, what: str) -> ImageBackbone:
    """The same backbone, for what works on pictures alone.

    Raises:
        NotSupported: it reads text.
    """
    if isinstance(backbone, ImageBackbone):
        return backbone
    raise NotSupported(
        f"{what} needs a network that reads pictures, and {backbone.architecture} reads text.",
        "`gist list methods` shows the methods; `gist list models` the networks.",
    )
