"""timm's VisionTransformer: AugReg, DeiT, DINO, CLIP and SigLIP, whatever they pool."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from gistcli.backbones.base import Origin, Ran
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.sites import Output, Point, Site, Tap
from gistcli.backbones.timm_family import TimmBackbone, built_in, unknown_point
from gistcli.errors import NotMergeable, NotSupported

LINEARS = {"attn.qkv": "qkv", "attn.proj": "attn_out", "mlp.fc1": "fc_in", "mlp.fc2": "fc_out"}
SLICES = ("query", "key", "value")


class ViT(TimmBackbone):
    """A timm VisionTransformer of plain blocks: class token, average, map pooling, registers.

    Roles: query, key, value (row slices of the fused `attn.qkv`), attn_out (`attn.proj`),
    fc_in (`mlp.fc1`), fc_out (`mlp.fc2`).

    Raises:
        NotSupported: the network is of another kind.
    """

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        self._require_plain(model, origin)
        super().__init__(model, origin)
        cls_tokens = self.timm.num_prefix_tokens - self.timm.num_reg_tokens
        # before norm_pre, so that a CLIP ViT normalises the new tokens too
        self.carry_tokens(cls_tokens, Tap(self.timm.norm_pre), self.timm.norm)

    @staticmethod
    def _require_plain(model: nn.Module, origin: Origin) -> None:
        plain = type(model) in (VisionTransformer, VisionTransformerDistilled)
        if not plain or any(type(b) is not Block for b in model.blocks):  # type: ignore[union-attr]
            raise NotSupported(
                f"{origin.architecture} is a {type(model).__name__}, not a plain ViT.",
                "See `gist list models` for the backbones that can be tuned.",
            )

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family."""
        return built_in(architecture, "vision_transformer", "deit")

    @property
    def blocks(self) -> Any:
        """`model.blocks`."""
        return self.timm.blocks

    # --- seams ------------------------------------------------------------------------------

    def all_sites(self) -> list[Site]:
        """Per block: qkv whole and as three slices, attn_out, fc_in, fc_out."""
        return [site for layer in range(self.depth) for site in self._block_sites(layer)]

    def _block_sites(self, layer: int) -> list[Site]:
        sites = []
        for path, role in LINEARS.items():
            name = f"blocks.{layer}.{path}"
            module = self.model.get_submodule(name)
            assert isinstance(module, nn.Linear), name
            sites.append(Site(name, name, role, layer, module))
            if role == "qkv":
                sites += thirds(sites[-1])
        return sites

    def outputs(self) -> list[Output]:
        """Patch embedding, norms and linear maps of every block, last norm."""
        paths = ["patch_embed.proj", "norm_pre"]
        for layer in range(self.depth):
            parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
            paths += [f"blocks.{layer}.{part}" for part in parts]
        return affine_outputs(self.model, [*paths, "norm", "fc_norm"])

    def point(self, after: str, layer: int) -> Point:
        """The place behind attention, mlp or a whole-row role in block `layer`."""
        block: Any = self.blocks[layer]
        leaves = {
            "attention": block.drop_path1,
            "mlp": block.drop_path2,
            "qkv": block.attn.qkv,
            "attn_out": block.attn.proj,
            "fc_in": block.mlp.fc1,
            "fc_out": block.mlp.fc2,
        }
        if after not in leaves:
            raise unknown_point(after, leaves, "ViT")
        norm = block.norm2 if after in ("mlp", "fc_in", "fc_out") else block.norm1
        width = getattr(leaves[after], "out_features", self.timm.embed_dim)
        name = f"blocks.{layer}@{after}"
        return Point(name, after, layer, width, Tap(norm), Tap(norm, output=True), leaves[after])

    # --- tokens -----------------------------------------------------------------------------

    def layout_of(self, pixels: Tensor) -> TokenLayout:
        """Class tokens (two where distilled), registers, patches."""
        patch = self.timm.patch_embed.patch_size
        grid = (pixels.shape[-2] // patch[0], pixels.shape[-1] // patch[1])
        registers = self.timm.num_reg_tokens
        lengths = {
            "cls": self.timm.num_prefix_tokens - registers,
            "registers": registers,
            "patches": grid[0] * grid[1],
        }
        return TokenLayout(lengths, grid)

    def register_tokens(self, tokens_PD: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Registers in front of those there are, with a zero position where registers have one.

        Raises:
            NotMergeable: a distilled network, which has no registers.
        """
        model = self.timm
        if isinstance(model, VisionTransformerDistilled):
            raise NotMergeable(
                f"{self.architecture} has no register tokens that could hold trained ones.",
                "Keep the run directory, or export with `gist merge --format onnx`.",
            )
        registers = tokens_PD.detach()[None]
        if model.reg_token is not None:
            registers = torch.cat([registers, model.reg_token.detach().to(registers)], dim=1)
        new = {"reg_token": registers}
        if model.pos_embed is not None and not model.no_embed_class:
            cls = model.num_prefix_tokens - model.num_reg_tokens
            position = model.pos_embed.detach().float()
            zeros = position.new_zeros(1, len(tokens_PD), position.shape[-1])
            new["pos_embed"] = torch.cat([position[:, :cls], zeros, position[:, cls:]], dim=1)
        return new, {"reg_tokens": registers.shape[1]}

    # --- running ----------------------------------------------------------------------------

    def run(self, pixels: Tensor) -> Ran:
        """Features and logits; a distilled network averages its two heads, in training too."""
        model = self.timm
        tokens = model.forward_features(pixels.to(model.patch_embed.proj.weight.dtype))
        if isinstance(model, VisionTransformerDistilled):
            pooled = model.head_drop(tokens[:, :2]).flatten(1)
        else:
            pooled = model.forward_head(tokens, pre_logits=True)
        return tokens, pooled, self.classify(pooled)

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, K); pooled holds class and distillation token side by side where there are two."""
        heads = self.heads().values()
        parts = pooled.chunk(len(heads), dim=-1)
        logits = [head(part) for head, part in zip(heads, parts, strict=True)]
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)

    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K): the slot's mean output through fc_norm, dropout and head."""
        model = self.timm
        tokens = features.tokens[:, features.layout.span(slot)]
        pooled = model.attn_pool(tokens) if model.attn_pool is not None else tokens.mean(dim=1)
        pooled = model.head_drop(model.fc_norm(pooled))
        return self.classify(pooled.repeat(1, len(self.heads())))


def thirds(fused: Site) -> list[Site]:
    """Query, key and value as row slices of a fused map."""
    third = fused.module.out_features // 3
    return [
        Site(
            f"{fused.name}[{part}]",
            fused.module_name,
            part,
            fused.layer,
            fused.module,
            slice(i * third, (i + 1) * third),
            fused.parent,
        )
        for i, part in enumerate(SLICES)
    ]


def affine_outputs(
    model: nn.Module, paths: list[str], bypassed: tuple[str, ...] = ()
) -> list[Output]:
    """Outputs of those modules that have a weight (a norm may be an Identity).

    Args:
        model: the network.
        paths: modules in order.
        bypassed: endings of paths whose modules the network never calls.
    """
    found = []
    for path in paths:
        module = model.get_submodule(path)
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        kind = {2: "linear", 4: "embed"}.get(weight.ndim, "norm")
        found.append(Output(path, kind, len(weight), module, path.endswith(bypassed or "\0")))
    return found
