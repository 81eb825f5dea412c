"""What hierarchical networks share: stages whose grids become coarser and whose widths grow."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor, nn

from gistcli.backbones.base import Ran
from gistcli.backbones.sites import Point, Site, Tap
from gistcli.backbones.timm_family import TimmBackbone, unknown_point
from gistcli.backbones.vit import LINEARS, thirds

MLP = ("mlp", "fc_in", "fc_out")
"""Points on the second branch of a block."""


class Hierarchical(TimmBackbone):
    """A timm network of attention blocks that differ in width and grid, and have no class token.

    Layers are counted over all stages. Roles: query, key, value (row slices of the fused
    `attn.qkv`), qkv, attn_out (`attn.proj`), fc_in (`mlp.fc1`), fc_out (`mlp.fc2`).
    """

    @property
    @abc.abstractmethod
    def block_paths(self) -> list[str]:
        """Paths of the blocks in `self.model`, in order."""

    @abc.abstractmethod
    def in_order(self, features: Tensor) -> Tensor:
        """(B, T, D), row by row: what the network's last block or norm gives."""

    @abc.abstractmethod
    def aligned(self, block: Any, after: str) -> bool:
        """Whether y behind attention, its output map or qkv has the tokens of the residual."""

    def qkv_parent(self, block: Any) -> nn.Module | None:
        """The module that reads the weight of `attn.qkv` itself, where one does."""
        return None

    def taps(self, block: Any, branch: str) -> tuple[Tap, Tap]:
        """Residual and x_in of the branch attention or mlp."""
        norm = block.norm2 if branch == "mlp" else block.norm1
        return Tap(norm), Tap(norm, output=True)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of all stages, in order."""
        return [self.model.get_submodule(path) for path in self.block_paths]

    def all_sites(self) -> list[Site]:
        """Per block: qkv whole and as three slices, attn_out, fc_in, fc_out."""
        paths = enumerate(self.block_paths)
        return [site for layer, path in paths for site in self._block_sites(layer, path)]

    def _block_sites(self, layer: int, path: str) -> list[Site]:
        sites = []
        parent = self.qkv_parent(self.model.get_submodule(path))
        for linear, role in LINEARS.items():
            name = f"{path}.{linear}"
            module = self.model.get_submodule(name)
            assert isinstance(module, nn.Linear), name
            by = parent if role == "qkv" else None
            sites.append(Site(name, name, role, layer, module, parent=by))
            if role == "qkv":
                sites += thirds(sites[-1])
        return sites

    def point(self, after: str, layer: int) -> Point:
        """The place behind attention, mlp or a whole-row role in block `layer`.

        `aligned` is False where y is in windows (Swin) or pooled (Hiera), and the residual is not.
        """
        path = self.block_paths[layer]
        block: Any = self.model.get_submodule(path)
        leaves = {
            "attention": block.drop_path1,
            "mlp": block.drop_path2,
            "qkv": block.attn.qkv,
            "attn_out": block.attn.proj,
            "fc_in": block.mlp.fc1,
            "fc_out": block.mlp.fc2,
        }
        if after == "qkv" and self.qkv_parent(block) is not None:
            del leaves["qkv"]
        if after not in leaves:
            raise unknown_point(after, leaves, type(self.model).__name__)
        leaf, in_mlp = leaves[after], after in MLP
        residual, x_in = self.taps(block, "mlp" if in_mlp else "attention")
        width = getattr(leaf, "out_features", block.mlp.fc2.out_features)
        aligned = in_mlp or self.aligned(block, after)
        return Point(f"{path}@{after}", after, layer, width, residual, x_in, leaf, aligned)

    def run(self, pixels: Tensor) -> Ran:
        """Features and logits."""
        model = self.timm
        features = model.forward_features(pixels.to(model.patch_embed.proj.weight.dtype))
        pooled = model.forward_head(features, pre_logits=True)
        return self.in_order(features), pooled, self.classify(pooled)
