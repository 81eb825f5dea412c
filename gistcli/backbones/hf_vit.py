"""Hugging Face transformers' plain vision Transformers: ViT, DeiT, ViT-MSN, DINOv2."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gistcli.backbones.attending import AttentionSeam
from gistcli.backbones.base import Origin, Ran, initialise_head
from gistcli.backbones.hf_images import Images, read_images
from gistcli.backbones.hf_keys import stored_keys
from gistcli.backbones.images import ImageBackbone
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.parts import affine_outputs
from gistcli.backbones.sites import Output, Point, Site, Tap
from gistcli.backbones.stored import StoredKeys
from gistcli.backbones.timm_family import unknown_point
from gistcli.errors import NotSupported

ROLES = {
    "attention.q_proj": "query", "attention.k_proj": "key", "attention.v_proj": "value",
    "attention.o_proj": "attn_out",
    "mlp.fc1": "fc_in", "mlp.fc2": "fc_out",
    "mlp.gate_proj": "fc_gate", "mlp.up_proj": "fc_in", "mlp.down_proj": "fc_out",
}  # fmt: skip
MLP = ("mlp", "fc_gate", "fc_in", "fc_out")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Names:
    """What differs between these networks.

    Attributes:
        base: attribute of the network without its head, which is also the prefix of the keys.
        blocks: path of the blocks in it.
        norms: of a block.
        exits: module at the end of each branch.
        images: preprocessing where no preprocessor_config.json says it.
        cls_tokens: class tokens, with the distillation token.
        any_size: position embeddings are resampled in every forward pass, and the head reads the
            mean of the patches beside the class token.
    """

    base: str
    blocks: str
    norms: tuple[str, str]
    exits: tuple[str, str]
    images: Images
    cls_tokens: int = 1
    any_size: bool = False


_VIT = Names(
    "vit",
    "layers",
    ("layernorm_before", "layernorm_after"),
    # the dropout behind them is one module for both branches, and 0 in every published network
    ("attention.o_proj", "mlp"),
    Images(*HALF, interpolation="bilinear", crop_mode="squash"),
)
_DINOV2 = Names(
    "dinov2",
    "encoder.layer",
    ("norm1", "norm2"),
    # the drop path behind them is one module for both branches
    ("layer_scale1", "layer_scale2"),
    Images(*IMAGENET, interpolation="bicubic", crop_mode="center"),
    any_size=True,
)
NETWORKS = {
    "DeiTForImageClassification": replace(
        _VIT,
        base="deit",
        cls_tokens=2,
        images=Images(*IMAGENET, interpolation="bicubic", crop_mode="squash", crop_pct=0.875),
    ),
    "Dinov2ForImageClassification": _DINOV2,
    "Dinov2WithRegistersForImageClassification": replace(_DINOV2, base="dinov2_with_registers"),
    "ViTForImageClassification": _VIT,
    "ViTMSNForImageClassification": replace(
        _VIT, images=Images(*IMAGENET, interpolation="bilinear", crop_mode="squash")
    ),
}
MODEL_TYPES = {
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
    "vit": "ViTForImageClassification",
    "vit_msn": "ViTMSNForImageClassification",
}


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The class for the content of a config.json, also of the network without a classifier.

    None for other networks, and for other classifiers on these (DeiT's with two heads).
    """
    named = str((config.get("architectures") or [""])[0])
    if "ForImageClassification" in named and named not in NETWORKS:
        return None
    return MODEL_TYPES.get(str(config.get("model_type")))


class HFViT(ImageBackbone):
    """A plain vision Transformer of Hugging Face transformers with its classifier.

    Roles: query, key, value, attn_out (modules of their own), fc_in, fc_out, and fc_gate where the
    MLP is gated (DINOv2 giant). Points after attention and mlp stand behind LayerScale; the drop
    path (DINOv2) or dropout (ViT) of the branch follows.

    Raises:
        NotSupported: the network is of another kind.
    """

    library = "transformers"

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        super().__init__()
        name = type(model).__name__
        if name not in NETWORKS:
            raise NotSupported(
                f"{origin.architecture} is a {name}, not one of {', '.join(NETWORKS)}.",
                "See `gist list models` for the backbones that can be tuned.",
            )
        self.model = model
        self.origin = origin
        self.names = NETWORKS[name]
        self.freeze()
        enter = Tap(self.base.embeddings, output=True)
        self.carry_tokens(self.names.cls_tokens, enter, self.base.layernorm)

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether a name is that of one of these classes."""
        return architecture in NETWORKS

    @property
    def hf(self) -> Any:
        """The network, without a type: every class has its own attributes."""
        return self.model

    @property
    def base(self) -> Any:
        """The network without its head."""
        return getattr(self.model, self.names.base)

    @property
    def blocks(self) -> Any:
        """`vit.layers`, `dinov2.encoder.layer`."""
        return self.base.get_submodule(self.names.blocks)

    def stored_keys(self) -> StoredKeys:
        """By transformers' own mapping, which keeps the names of earlier versions in files."""
        return stored_keys(self.model)

    def unused_names(self) -> list[str]:
        """The mask token, which only pretraining reads."""
        name = f"{self.names.base}.embeddings.mask_token"
        return [name] if self.base.embeddings.mask_token is not None else []

    # --- preprocessing and head -------------------------------------------------------------

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels; None where the preprocessing decides (DINOv2)."""
        asked: tuple[int, int] | None = self.origin.config.get("img_size")
        if asked is not None or self.names.any_size:
            return asked
        height, width = self.base.embeddings.patch_embeddings.image_size
        return height, width

    def data_config(self) -> dict[str, Any]:
        """What preprocessor_config.json says, in timm's terms, at the size of the network."""
        config = self.hf.config
        side = config.image_size
        own = (side, side) if isinstance(side, int) else tuple(side)
        images = read_images(self.origin.config.get("folder")) or self.names.images
        size = self.image_size or images.size or own
        return images.at(size).as_config(config.num_channels)

    def reset_head(self, classes: int, seed: int = 0) -> None:
        """A new linear head for `classes`, truncated normal 0.02 and zero bias."""
        model, reference = self.hf, next(self.model.parameters())
        width = model.config.hidden_size * (2 if self.names.any_size else 1)
        head = nn.Linear(width, classes, device=reference.device, dtype=reference.dtype)
        model.classifier = head
        model.num_labels = model.config.num_labels = classes
        initialise_head(head, seed)
        self.freeze()

    def head_names(self) -> list[str]:
        """`classifier.weight`, `classifier.bias`; none for a network without a head."""
        return [f"classifier.{name}" for name, _ in self.hf.classifier.named_parameters()]

    # --- seams ------------------------------------------------------------------------------

    def _path(self, layer: int, part: str) -> str:
        return f"{self.names.base}.{self.names.blocks}.{layer}.{part}"

    def _linears(self, layer: int) -> dict[str, str]:
        """Path in the block -> role, of the linear maps that this block has, in order."""
        found = {name for name, _ in self.blocks[layer].named_modules()}
        return {path: role for path, role in ROLES.items() if path in found}

    def all_sites(self) -> list[Site]:
        """Per block: query, key, value, attn_out, (fc_gate,) fc_in, fc_out."""
        sites = []
        for layer in range(self.depth):
            for part, role in self._linears(layer).items():
                name = self._path(layer, part)
                module = self.model.get_submodule(name)
                assert isinstance(module, nn.Linear), name
                sites.append(Site(name, name, role, layer, module))
        return sites

    def outputs(self) -> list[Output]:
        """Patch embedding, norms and linear maps of every block, last norm."""
        first, second = self.names.norms
        paths = [f"{self.names.base}.embeddings.patch_embeddings.projection"]
        for layer in range(self.depth):
            linears = list(self._linears(layer))
            attention = [part for part in linears if part.startswith("attention.")]
            parts = [first, *attention, second, *[p for p in linears if p not in attention]]
            paths += [self._path(layer, part) for part in parts]
        return affine_outputs(self.model, [*paths, f"{self.names.base}.layernorm"])

    def point(self, after: str, layer: int) -> Point:
        """The place behind attention, mlp or a role in block `layer`."""
        linears = {role: path for path, role in self._linears(layer).items()}
        leaves = {"attention": self.names.exits[0], "mlp": self.names.exits[1], **linears}
        if after not in leaves:
            raise unknown_point(after, leaves, self.architecture)
        block = self.blocks[layer]
        norm = block.get_submodule(self.names.norms[after in MLP])
        leaf = block.get_submodule(leaves[after])
        width = getattr(leaf, "out_features", self.hf.config.hidden_size)
        name = self._path(layer, "").removesuffix(".") + f"@{after}"
        return Point(name, after, layer, width, Tap(norm), Tap(norm, output=True), leaf)

    def attention(self, layer: int) -> AttentionSeam:
        """The second output of the module; all blocks share one config, so this one gets a copy."""
        attn = self.blocks[layer].attention
        unfused = copy.copy(attn.config)
        unfused._attn_implementation = "eager"
        return AttentionSeam(attn, lambda y: y[1], attn, "config", unfused)

    # --- tokens -----------------------------------------------------------------------------

    def layout_of(self, pixels: Tensor) -> TokenLayout:
        """Class tokens (two in DeiT), registers, patches."""
        height, width = self.base.embeddings.patch_embeddings.patch_size
        grid = (pixels.shape[-2] // height, pixels.shape[-1] // width)
        registers = getattr(self.hf.config, "num_register_tokens", 0)
        lengths = {
            "cls": self.names.cls_tokens,
            "registers": registers,
            "patches": grid[0] * grid[1],
        }
        return TokenLayout(lengths, grid)

    def register_tokens(self, tokens_PD: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Registers in front of those that DINOv2 with registers has; exact, without positions.

        Raises:
            NotMergeable: another network, which has no registers.
        """
        registers = getattr(self.base.embeddings, "register_tokens", None)
        if registers is None:
            return super().register_tokens(tokens_PD)
        new = tokens_PD.detach()[None]
        joined = torch.cat([new, registers.detach().to(new)], dim=1)
        key = f"{self.names.base}.embeddings.register_tokens"
        return {key: joined}, {"num_register_tokens": joined.shape[1]}

    # --- running ----------------------------------------------------------------------------

    def run(self, pixels: Tensor) -> Ran:
        """Features and logits; pooled is what the classifier reads."""
        tokens: Tensor = self.base(pixels).last_hidden_state
        pooled = tokens[:, 0]
        if self.names.any_size:
            pooled = self._beside_patches(pooled, tokens[:, self.layout_of(pixels).patches])
        return tokens, pooled, self.classify(pooled)

    def _beside_patches(self, x_BD: Tensor, patches_BTD: Tensor) -> Tensor:
        return torch.cat([x_BD, patches_BTD.mean(dim=1)], dim=1)

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, K): the head alone."""
        logits: Tensor = self.hf.classifier(pooled)
        return logits

    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K): the slot's mean output in the place of the class token's."""
        x_BD = features.tokens[:, features.layout.span(slot)].mean(dim=1)
        if self.names.any_size:
            x_BD = self._beside_patches(x_BD, features.tokens[:, features.layout.patches])
        return self.classify(x_BD)

    def checkpoint_gradients(self) -> None:
        """Recompute the activations of every block in the backward pass."""
        self.hf.activation_checkpointing_enable()
