"""timm's SwinTransformer and SwinTransformerV2: attention within windows that shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models.swin_transformer import SwinTransformer, window_reverse
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.sites import Output, Site, Tap
from gistcli.backbones.timm_blocks import MLP, TimmBlocks
from gistcli.backbones.timm_family import built_in

ATTENTION, FEED_FORWARD = ("attn.qkv", "attn.proj"), ("mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class StagedLayout(TokenLayout):
    """The tokens of the last stage.

    Attributes:
        stages: rows and columns of every stage.
    """

    stages: tuple[tuple[int, int], ...] = ()


class Swin(TimmBlocks):
    """Swin (also the searched S3 variants) and Swin V2, whose norms stand behind the branches.

    Activations between the blocks are (B, H, W, D); inside attention they are windows
    (B windows, tokens of a window, D), padded where the window does not divide the grid.

    A V2 block computes `x + norm(branch(x))`: its points see x_in = residual, and y behind the
    norm. Where it has biases it reads the weight of `attn.qkv` itself (`Site.parent`), so that
    there is no point "qkv".

    Raises:
        NotSupported: the network is of another kind.
    """

    networks = (SwinTransformer, SwinTransformerV2)
    token_refusal = "it attends within windows, which have no place for one"

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family."""
        return built_in(architecture, "swin_transformer", "swin_transformer_v2")

    @property
    def block_paths(self) -> list[str]:
        """`layers.S.blocks.M`."""
        return [
            f"layers.{stage}.blocks.{number}"
            for stage, layer in enumerate(self.timm.layers)
            for number in range(len(layer.blocks))
        ]

    @property
    def blocks(self) -> Any:
        """Those of all stages, in order."""
        return [block for layer in self.timm.layers for block in layer.blocks]

    # --- seams ------------------------------------------------------------------------------

    def taps(self, block: Any, branch: str) -> tuple[Tap, Tap]:
        """Residual and x_in; the same tensor in a V2 block."""
        if isinstance(self.model, SwinTransformer):
            return super().taps(block, branch)
        tap = Tap(block.mlp if branch == "mlp" else block)
        return tap, tap

    def aligned(self, block: Any, after: str) -> bool:
        """Inside attention tokens stand in windows."""
        return after == "attention"

    def outputs(self) -> list[Output]:
        """Patch embedding, patch merging, norms and linear maps of every block, last norm."""
        paths = ["patch_embed.proj", "patch_embed.norm"]
        merging, parts = ("norm", "reduction"), ("norm1", *ATTENTION, "norm2", *FEED_FORWARD)
        if isinstance(self.model, SwinTransformerV2):
            merging, parts = ("reduction", "norm"), (*ATTENTION, "norm1", *FEED_FORWARD, "norm2")
        for stage, layer in enumerate(self.timm.layers):
            if not isinstance(layer.downsample, nn.Identity):
                paths += [f"layers.{stage}.downsample.{part}" for part in merging]
            for number in range(len(layer.blocks)):
                paths += [f"layers.{stage}.blocks.{number}.{part}" for part in parts]
        return self.outputs_at([*paths, "norm"])

    # --- running ----------------------------------------------------------------------------

    def layout_of(self, pixels: Tensor) -> StagedLayout:
        """The patches of the last stage."""
        patch = self.timm.patch_embed.patch_size
        grid = (pixels.shape[-2] // patch[0], pixels.shape[-1] // patch[1])
        stages = [grid]
        for _ in self.timm.layers[1:]:  # patch merging pads an odd side
            stages.append(((stages[-1][0] + 1) // 2, (stages[-1][1] + 1) // 2))
        rows, columns = stages[-1]
        return StagedLayout({"patches": rows * columns}, (rows, columns), stages=tuple(stages))

    def in_order(self, features: Tensor) -> Tensor:
        """(B, H W, D) of (B, H, W, D)."""
        return features.flatten(1, 2)

    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K): the slot's outputs, pooled, through dropout and head."""
        tokens = features.tokens[:, features.layout.span(slot)]
        logits: Tensor = self.timm.forward_head(tokens.unsqueeze(1))
        return logits

    def patch_map(self, site: Site, y: Tensor) -> Tensor:
        """(B, h, w, d_out) on the grid of the site's stage, padding taken away.

        Args:
            site: one of this network.
            y: (B windows, tokens of a window, d_out) inside attention, (B, h w, d_out) in the MLP.
        """
        assert isinstance(self.layout, StagedLayout), "there has been no forward pass"
        height, width = self.layout.stages[int(site.module_name.split(".")[1])]
        if site.role in MLP:
            return y.unflatten(1, (height, width))
        block: Any = self.blocks[site.layer]
        rows, columns = block.window_size
        padded = -(-height // rows) * rows, -(-width // columns) * columns
        shifted = window_reverse(y.unflatten(1, (rows, columns)), (rows, columns), *padded)
        return shifted[:, :height, :width].roll(tuple(block.shift_size), dims=(1, 2))
