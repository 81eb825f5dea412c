"""timm's Hiera: mask unit attention, tokens pooled between the stages."""

from __future__ import annotations

import math
from typing import Any

from timm.models.hiera import Hiera
from torch import Tensor, nn

from gistcli.backbones.base import Origin
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.sites import Output, Site
from gistcli.backbones.timm_blocks import TimmBlocks
from gistcli.backbones.timm_family import built_in
from gistcli.errors import Refused

BEFORE_POOLING = ("query", "key", "value", "qkv")
"""Roles that see the tokens as they enter the block."""


class HieraViT(TimmBlocks):
    """A Hiera network, with either kind of position embedding.

    Between the blocks the tokens are not in rows and columns but in the order in which pooling
    finds its neighbours. The first block of a later stage pools its tokens inside attention and
    changes their width: its qkv reads `dim` and gives 3 `dim_out`. Its residual passes through
    `blocks.N.proj` (or a pooling without weights), which has no role. The last norm stands behind
    the pooling in the head, so that `Features.tokens` are not normalised.

    Raises:
        NotSupported: the network is of another kind.
        Refused: an image size that mask units do not divide, or that the weights do not have.
    """

    networks = (Hiera,)
    token_refusal = "it attends within mask units and pools its tokens by position"

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        super().__init__(model, origin)
        self._require_whole_units()
        if origin.config:  # opened by name, for weights that there are
            self._require_stored_size()

    def _require_whole_units(self) -> None:
        model = self.timm
        pooled = [stride ** (len(model.stage_ends) - 1) for stride in model.q_stride]
        units = [
            math.lcm(unit, side) for unit, side in zip(model.mask_unit_size, pooled, strict=True)
        ]
        if any(n % unit for n, unit in zip(model.tokens_spatial_shape, units, strict=True)):
            step = [n * stride for n, stride in zip(units, model.patch_stride, strict=True)]
            raise Refused(
                f"{self.architecture} cannot take images of {self.image_size} pixels.",
                f"Height and width must be multiples of {step[0]} and {step[1]}.",
            )

    def _require_stored_size(self) -> None:
        """Absolute positions are not resampled, and fit any image of as many tokens."""
        if self.timm.pos_embed_win is None and self.image_size != self.stored_size:
            raise Refused(
                f"{self.architecture} cannot take images of {self.image_size} pixels.",
                "Its position embedding is of one image size: leave model.img_size out.",
            )

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family."""
        return built_in(architecture, "hiera")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the network was built for."""
        shape, stride = self.timm.tokens_spatial_shape, self.timm.patch_stride
        return shape[0] * stride[0], shape[1] * stride[1]

    # --- seams ------------------------------------------------------------------------------

    def aligned(self, block: Any, after: str) -> bool:
        """Not where the block pools, but for qkv, which stands before that."""
        return after == "qkv" or not block.do_expand

    def outputs(self) -> list[Output]:
        """Patch embedding, norms and linear maps of every block, the head's norm."""
        paths = ["patch_embed.proj"]
        parts = ("norm1", "proj", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        paths += [f"{path}.{part}" for path in self.block_paths for part in parts]
        return self.outputs_at([*paths, "head.norm"])

    # --- running ----------------------------------------------------------------------------

    def layout_of(self, pixels: Tensor) -> TokenLayout:
        """The patches of the last stage."""
        rows, columns = self.timm.reroll.schedule[self.depth - 1][1]
        return TokenLayout({"patches": rows * columns}, (rows, columns))

    def in_order(self, features: Tensor) -> Tensor:
        """(B, T, D) row by row; the order differs only where not every stage pools."""
        return self._on_grid(features, self.depth - 1).flatten(1, 2)

    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K): the slot's outputs, pooled, through norm, dropout and head."""
        logits: Tensor = self.timm.forward_head(features.tokens[:, features.layout.span(slot)])
        return logits

    def patch_map(self, site: Site, y: Tensor) -> Tensor:
        """(B, h, w, d_out) on the grid that the site sees: qkv that before pooling."""
        before = site.role in BEFORE_POOLING
        return self._on_grid(y, max(site.layer - 1, 0) if before else site.layer)

    def _on_grid(self, tokens: Tensor, layer: int) -> Tensor:
        """(B, h, w, D) of the tokens (B, T, D) that block `layer` gives."""
        grid: Tensor = self.timm.reroll(tokens, layer)
        return grid
