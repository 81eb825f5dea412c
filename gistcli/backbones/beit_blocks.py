"""What BEiT and its descendant EVA share: blocks whose attention may read the weight of qkv."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gistcli.backbones.base import Ran
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.sites import Output, Point, Site, Tap
from gistcli.backbones.timm_family import TimmBackbone, unknown_point
from gistcli.backbones.vit import affine_outputs, thirds
from gistcli.errors import NotSupported

LINEARS = {
    "attn.qkv": "qkv",
    "attn.q_proj": "query",
    "attn.k_proj": "key",
    "attn.v_proj": "value",
    "attn.proj": "attn_out",
    "mlp.fc1": "fc_in",
    "mlp.fc1_g": "fc_gate",
    "mlp.fc1_x": "fc_in",
    "mlp.fc2": "fc_out",
}
AFFINE = (
    "norm1", "attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.q_norm", "attn.k_norm",
    "attn.norm", "attn.proj", "norm2", "mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.norm", "mlp.fc2",
)  # fmt: skip
"""Modules of a block that may have a weight, in the order in which they act."""


class BeitBlocks(TimmBackbone):
    """Residual blocks: attention (fused or three projections), MLP (plain, or gated).

    Roles: query, key, value (row slices of a fused `attn.qkv`, else modules), attn_out
    (`attn.proj`), fc_in (`mlp.fc1`; value and gate in one where it is a GLU; `mlp.fc1_x` where the
    two are apart), fc_gate (`mlp.fc1_g`), fc_out (`mlp.fc2`).
    """

    @property
    def blocks(self) -> Any:
        """`model.blocks`."""
        return self.timm.blocks

    # --- seams ------------------------------------------------------------------------------

    def _linears(self, layer: int) -> dict[str, nn.Linear]:
        """The linear maps of a block that have a role, by their path in it."""
        found = {}
        for path in LINEARS:
            part, _, last = path.partition(".")
            module = getattr(getattr(self.blocks[layer], part), last, None)
            if module is not None:
                found[path] = module
        return found

    def all_sites(self) -> list[Site]:
        """Per block: a fused qkv whole and as three slices, and every other linear map."""
        sites = []
        for layer in range(self.depth):
            attn = self.blocks[layer].attn
            for path, module in self._linears(layer).items():
                name, role = f"blocks.{layer}.{path}", LINEARS[path]
                parent = attn if role == "qkv" and reads_weight(attn) else None
                sites.append(Site(name, name, role, layer, module, parent=parent))
                if role == "qkv":
                    sites += thirds(sites[-1])
        return sites

    def bypassed_bias(self, site: Site) -> Tensor | None:
        """Biases of query and value, and the zeros of the key between them."""
        if site.parent is None:
            return None
        attn: Any = site.parent
        return torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])

    def outputs(self) -> list[Output]:
        """Patch embedding, norms and linear maps of every block, last norm."""
        paths = ["patch_embed.proj", "norm_pre"]
        for layer in range(self.depth):
            paths += [f"blocks.{layer}.{part}" for part in AFFINE]
        known = {name for name, _ in self.model.named_modules()}
        there = [path for path in (*paths, "norm", "fc_norm") if path in known]
        bypassed = ("attn.qkv",) if reads_weight(self.blocks[0].attn) else ()
        return affine_outputs(self.model, there, bypassed)

    def point(self, after: str, layer: int) -> Point:
        """The place behind attention, mlp or a whole-row role in block `layer`.

        Raises:
            NotSupported: behind a qkv whose module is never called.
        """
        block = self.blocks[layer]
        leaves: dict[str, Any] = {LINEARS[p]: m for p, m in self._linears(layer).items()}
        leaves |= {"attention": block.drop_path1, "mlp": block.drop_path2}
        if after not in leaves:
            raise unknown_point(after, leaves, type(self.model).__name__)
        if after == "qkv" and reads_weight(block.attn):
            raise NotSupported(
                f"There is no point behind blocks.{layer}.attn.qkv: the network reads its weight.",
                "Choose attention or attn_out.",
            )
        norm = block.norm2 if after in ("mlp", "fc_in", "fc_gate", "fc_out") else block.norm1
        width = getattr(leaves[after], "out_features", self.timm.embed_dim)
        name = f"blocks.{layer}@{after}"
        return Point(name, after, layer, width, Tap(norm), Tap(norm, output=True), leaves[after])

    # --- tokens -----------------------------------------------------------------------------

    @property
    def cls_tokens(self) -> int:
        """Class tokens in front: 1 or 0."""
        return int(self.timm.cls_token is not None)

    def layout_of(self, pixels: Tensor) -> TokenLayout:
        """Class token, registers, patches."""
        model = self.timm
        grid = tuple(model.patch_embed.dynamic_feat_size(tuple(pixels.shape[-2:])))
        lengths = {
            "cls": self.cls_tokens,
            "registers": model.num_prefix_tokens - self.cls_tokens,
            "patches": grid[0] * grid[1],
        }
        return TokenLayout(lengths, (grid[0], grid[1]))

    # --- running ----------------------------------------------------------------------------

    def run(self, pixels: Tensor) -> Ran:
        """Tokens, pooled features and logits."""
        model = self.timm
        tokens = model.forward_features(pixels.to(model.patch_embed.proj.weight.dtype))
        pooled = model.forward_head(tokens, pre_logits=True)
        return tokens, pooled, self.classify(pooled)

    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K): the slot's mean output, or what a pooling attention makes of it, classified."""
        model = self.timm
        tokens = features.tokens[:, features.layout.span(slot)]
        pool = getattr(model, "attn_pool", None)
        pooled = tokens.mean(dim=1) if pool is None else pool(tokens)
        return self.classify(model.head_drop(model.fc_norm(pooled)))


def reads_weight(attn: Any) -> bool:
    """Whether an attention multiplies by `qkv.weight` and never calls `qkv`.

    It does so to add a bias to query and value that the key does not have.
    """
    return getattr(attn, "q_bias", None) is not None and not attn.qkv_bias_separate
