"""timm's VisionTransformer: class-token, average-pool, register and map-pool ViTs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from gistcli.backbones.base import Backbone, MakeTokens, Origin, initialise_head
from gistcli.backbones.layout import SLOTS, Features, TokenLayout
from gistcli.backbones.sites import Point, Site, Switch
from gistcli.errors import NotSupported, UnknownName, did_you_mean

LINEARS = {"attn.qkv": "qkv", "attn.proj": "attn_out", "mlp.fc1": "fc_in", "mlp.fc2": "fc_out"}
SLICES = ("query", "key", "value")


class ViT(Backbone):
    """A timm VisionTransformer of plain blocks.

    Roles: query, key, value (row slices of the fused `attn.qkv`), attn_out (`attn.proj`),
    fc_in (`mlp.fc1`), fc_out (`mlp.fc2`).

    Raises:
        NotSupported: the network is of another kind.
    """

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        super().__init__()
        if type(model) is not VisionTransformer or any(type(b) is not Block for b in model.blocks):
            raise NotSupported(
                f"{origin.architecture} is a {type(model).__name__}, not a plain ViT.",
                "See `gist list models` for the backbones that can be tuned.",
            )
        self.model: VisionTransformer = model
        self.origin = origin
        self._inserted: list[tuple[str, int, MakeTokens, Switch]] = []
        self._full: Tensor | None = None  # the last sequence before inserted tokens were taken out
        model.norm_pre.register_forward_pre_hook(self._insert)
        model.norm.register_forward_hook(self._strip)
        self.freeze()

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether an architecture name is of this family."""
        from timm.models import is_model, model_entrypoint

        if not is_model(architecture):
            return False
        module = model_entrypoint(architecture).__module__
        return module == "timm.models.vision_transformer"

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.model.blocks)

    def data_config(self) -> dict[str, Any]:
        """timm's data config with the image size that the network was built for."""
        config = resolve_model_data_config(self.model)
        channels = config["input_size"][0]
        return {**config, "input_size": (channels, *self.model.patch_embed.img_size)}

    def reset_head(self, classes: int, seed: int = 0) -> None:
        """A new linear head for `classes`, truncated normal 0.02 and zero bias."""
        reference = next(self.model.parameters())
        self.model.reset_classifier(classes)
        head = self.model.head.to(device=reference.device, dtype=reference.dtype)
        assert isinstance(head, nn.Linear)
        initialise_head(head, seed)
        self.freeze()

    def head_names(self) -> list[str]:
        """`head.weight`, `head.bias`."""
        return [f"head.{name}" for name, _ in self.model.head.named_parameters()]

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
                third = module.out_features // 3
                for i, part in enumerate(SLICES):
                    rows = slice(i * third, (i + 1) * third)
                    sites.append(Site(f"{name}[{part}]", name, part, layer, module, rows))
        return sites

    def point(self, after: str, layer: int) -> Point:
        """The place behind attention, mlp or a whole-row role in block `layer`."""
        block: Any = self.model.blocks[layer]
        branches = {
            "attention": (block.norm1, block.attn, block.drop_path1),
            "mlp": (block.norm2, block.mlp, block.drop_path2),
            "qkv": (block.norm1, block.attn.qkv, block.attn.qkv),
            "attn_out": (block.norm1, block.attn.proj, block.attn.proj),
            "fc_in": (block.norm2, block.mlp.fc1, block.mlp.fc1),
            "fc_out": (block.norm2, block.mlp.fc2, block.mlp.fc2),
        }
        if after not in branches:
            raise UnknownName(f"No point {after!r} in a ViT.", did_you_mean(after, branches))
        entry, inner, leave = branches[after]
        width = getattr(leave, "out_features", self.model.embed_dim)
        return Point(f"blocks.{layer}@{after}", after, layer, width, entry, inner, leave)

    # --- tokens -----------------------------------------------------------------------------

    def layout(self, pixels: Tensor) -> TokenLayout:
        """Where each kind of token stands for images of this size."""
        patch = self.model.patch_embed.patch_size
        grid = (pixels.shape[-2] // patch[0], pixels.shape[-1] // patch[1])
        lengths = {
            "cls": self._cls_tokens,
            "registers": self.model.num_reg_tokens,
            "patches": grid[0] * grid[1],
        }
        for slot, length, _, _ in self._active():
            lengths[slot] = lengths.get(slot, 0) + length
        return TokenLayout(lengths, grid)

    def insert_tokens(self, slot: str, length: int, make: MakeTokens, switch: Switch) -> None:
        """Insert before `norm_pre` (so that a CLIP ViT normalises them too), strip after `norm`."""
        if slot not in ("gist", "prompts"):
            raise UnknownName(f"No token can be inserted as {slot!r}.", "Use gist or prompts.")
        entry = (slot, length, make, switch)
        self._inserted.append(entry)
        switch.on_release.append(lambda: self._inserted.remove(entry))

    def _active(self) -> list[tuple[str, int, MakeTokens, Switch]]:
        return [entry for entry in self._inserted if entry[3].enabled]

    def _insert(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        active, x_BTD = self._active(), args[0]
        if not active:
            return None
        new = []
        for slot, _, make, switch in sorted(active, key=lambda e: SLOTS.index(e[0])):
            switch.fired.add(slot)
            new.append(make(x_BTD.shape[0]).to(x_BTD.dtype))
        cls = self._cls_tokens
        return (torch.cat([x_BTD[:, :cls], *new, x_BTD[:, cls:]], dim=1),)

    def _strip(self, module: nn.Module, args: tuple[Any, ...], x_BTD: Tensor) -> Tensor | None:
        extra = sum(length for _, length, _, _ in self._active())
        if not extra:
            return None
        self._full, cls = x_BTD, self._cls_tokens
        return torch.cat([x_BTD[:, :cls], x_BTD[:, cls + extra :]], dim=1)

    @property
    def _cls_tokens(self) -> int:
        return self.model.num_prefix_tokens - self.model.num_reg_tokens

    # --- running ----------------------------------------------------------------------------

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Features of `batch["pixels"]` (B, 3, H, W)."""
        model, pixels = self.model, batch["pixels"]
        kept = model.forward_features(pixels.to(model.patch_embed.proj.weight.dtype))
        pooled = model.forward_head(kept, pre_logits=True)
        tokens = self._full if self._full is not None else kept
        self._full = None
        return Features(tokens, pooled, model.head(pooled), self.layout(pixels))

    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K): the slot's mean output through fc_norm, dropout and head."""
        model = self.model
        tokens = features.tokens[:, features.layout.span(slot)]
        pooled = model.attn_pool(tokens) if model.attn_pool is not None else tokens.mean(dim=1)
        return model.head(model.head_drop(model.fc_norm(pooled)))
