"""Attention blocks as timm writes them: where their linear maps and branches are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gistcli.backbones.base import Ran
from gistcli.backbones.parts import affine_outputs, thirds
from gistcli.backbones.sites import Output, Point, Site, Tap
from gistcli.backbones.timm_family import TimmBackbone, unknown_point
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
MLP = ("mlp", "fc_in", "fc_gate", "fc_out")
"""Points on the second branch of a block."""


class TimmBlocks(TimmBackbone):
    """Blocks of two residual branches, `attn` and `mlp`, counted over the whole network.

    Roles: query, key, value (row slices of a fused `attn.qkv`, else modules), qkv, attn_out
    (`attn.proj`), fc_in (`mlp.fc1`; value and gate in one where it is a packed GLU; `mlp.fc1_x`
    where the two are apart), fc_gate (`mlp.fc1_g`), fc_out (`mlp.fc2`).
    """

    @property
    def block_paths(self) -> list[str]:
        """Paths of the blocks in `self.model`, in order: `blocks.N`."""
        return [f"blocks.{number}" for number in range(self.depth)]

    @property
    def blocks(self) -> Any:
        """The blocks, in order."""
        return self.timm.blocks

    def taps(self, block: Any, branch: str) -> tuple[Tap, Tap]:
        """Residual and x_in of the branch attention or mlp."""
        norm = block.norm2 if branch == "mlp" else block.norm1
        return Tap(norm), Tap(norm, output=True)

    def aligned(self, block: Any, after: str) -> bool:
        """Whether y behind attention, its output map or qkv has the tokens of the residual."""
        return True

    def all_sites(self) -> list[Site]:
        """Per block: a fused qkv whole and as three slices, and every other linear map."""
        sites = []
        for layer, (path, block) in enumerate(zip(self.block_paths, self.blocks, strict=True)):
            for part, module in _linears(block).items():
                name, role = f"{path}.{part}", LINEARS[part]
                parent = block.attn if role == "qkv" and reads_weight(block.attn) else None
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

    def outputs_at(self, paths: list[str]) -> list[Output]:
        """Outputs of the modules that this network has, among `paths` in order."""
        known = {name for name, _ in self.model.named_modules()}
        bypassed = any(reads_weight(block.attn) for block in self.blocks)
        there = [path for path in paths if path in known]
        return affine_outputs(self.model, there, ("attn.qkv",) if bypassed else ())

    def point(self, after: str, layer: int) -> Point:
        """The place behind attention, mlp or a whole-row role in block `layer`.

        `aligned` is False where y is in windows (Swin) or pooled (Hiera), and the residual is not.

        Raises:
            UnknownName: no such place.
            NotSupported: behind a qkv whose module is never called.
        """
        path, block = self.block_paths[layer], self.blocks[layer]
        leaves: dict[str, Any] = {LINEARS[part]: m for part, m in _linears(block).items()}
        leaves |= {"attention": block.drop_path1, "mlp": block.drop_path2}
        if after not in leaves:
            raise unknown_point(after, leaves, type(self.model).__name__)
        if after == "qkv" and reads_weight(block.attn):
            raise NotSupported(
                f"There is no point behind {path}.attn.qkv: the network reads its weight.",
                "Choose attention or attn_out.",
            )
        leaf, in_mlp = leaves[after], after in MLP
        residual, x_in = self.taps(block, "mlp" if in_mlp else "attention")
        width = getattr(leaf, "out_features", block.mlp.fc2.out_features)
        aligned = in_mlp or self.aligned(block, after)
        return Point(f"{path}@{after}", after, layer, width, residual, x_in, leaf, aligned)

    def run(self, pixels: Tensor) -> Ran:
        """Tokens, pooled features and logits."""
        model = self.timm
        tokens = model.forward_features(pixels.to(model.patch_embed.proj.weight.dtype))
        pooled = self.pool(tokens)
        return self.in_order(tokens), pooled, self.classify(pooled)

    def pool(self, features: Tensor) -> Tensor:
        """(B, P) what the head reads, of what `forward_features` gives."""
        pooled: Tensor = self.timm.forward_head(features, pre_logits=True)
        return pooled

    def in_order(self, features: Tensor) -> Tensor:
        """(B, T, D) of what `forward_features` gives."""
        return features


def _linears(block: Any) -> dict[str, nn.Linear]:
    """The linear maps of a block that have a role, by their path in it."""
    found = {}
    for path in LINEARS:
        part, _, last = path.partition(".")
        module = getattr(getattr(block, part), last, None)
        if module is not None:
            found[path] = module
    return found


def reads_weight(attn: Any) -> bool:
    """Whether an attention multiplies by `qkv.weight` and never calls `qkv`.

    It does so to add a bias to query and value that the key does not have.
    """
    return getattr(attn, "q_bias", None) is not None and not attn.qkv_bias_separate
