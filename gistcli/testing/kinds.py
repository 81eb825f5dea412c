"""Tiny networks with random weights, one for every kind of backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn

from gistcli import registry
from gistcli.backbones import Backbone
from gistcli.backbones.base import Origin
from gistcli.testing.copies import Original

CLASSES, ROWS = 5, 6
VOCABULARY, LENGTH = 31, 8
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SWIN = {
    "img_size": 32, "patch_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4),
    "window_size": 4, "drop_path_rate": 0.0,
}  # fmt: skip
HIERA = {
    "img_size": 32, "embed_dim": 24, "num_heads": 2, "stages": (1, 2, 1), "q_pool": 2,
    "mask_unit_size": (4, 4), "mask_unit_attn": (True, True, False),
}  # fmt: skip
HUGGING_FACE = {
    "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 48, "mlp_ratio": 2, "num_labels": 5,
}  # fmt: skip
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "num_labels": 5, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
    # dropout of attention weights is no module that a test could switch off
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
DEBERTA = {
    "relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 4,
    "share_att_key": True, "position_biased_input": False, "norm_rel_ebd": "layer_norm",
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu", "pad_token_id": 0, "eos_token_id": 2,
    "decoder_start_token_id": 0, "label_token_ids": (3, 5, 7, 11, 13),
}  # fmt: skip
"""Gated as v1.1, with a scaled output in front of tied embeddings as v1.0."""
FEW = ("GPT-2", "BERT", "DeBERTa", "T5")
"""Kinds that differ little from another one, or only in where blocks stand."""


@dataclass(frozen=True)
class Kind:
    """A kind of backbone.

    Attributes:
        name: as it stands in the names of the cases.
        family: name in the registry.
        architecture: the family's own name.
        args: that make the network tiny.
        build: (architecture, arguments) -> network.
        few: is tested with some methods only, see `cases`.
    """

    name: str
    family: str
    architecture: str
    args: tuple[tuple[str, Any], ...]
    build: Callable[[str, dict[str, Any]], nn.Module]
    few: bool = False

    @property
    def text(self) -> bool:
        """Whether it reads text."""
        modality: str = registry.resolve("backbones", self.family).modality
        return modality == "text"

    def network(self, **more: Any) -> nn.Module:
        """A new network; `more` are arguments of the architecture, as `Merged.model_args`.

        Of one kind and arguments, its random weights are the same every time.
        """
        return _stock(self, torch.get_default_device(), tuple(more.items())).copy()

    def backbone(self, *, meta: bool = False) -> Backbone:
        """A new backbone in evaluation mode, with the same weights every time."""
        family = registry.resolve("backbones", self.family)
        origin = Origin(self.name, self.architecture)
        if meta:
            with torch.device("meta"):
                backbone: Backbone = family(self.network(), origin)
        else:
            backbone = family(_weighted(self).copy(), origin)
        backbone.reset_head(CLASSES)
        return backbone.eval()


@cache
def _stock(kind: Kind, device: torch.device, more: tuple[tuple[str, Any], ...]) -> Original:
    """The network of a kind as its library makes it on the default device."""
    return Original(kind.build(kind.architecture, {**dict(kind.args), **dict(more)}))


@cache
def _weighted(kind: Kind) -> Original:
    """The network of a kind with weights far from any initialisation."""
    generator = torch.Generator().manual_seed(0)
    network = kind.network()
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            # a norm around 0 would leave activations too small to show an effect
            if ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight"):
                parameter.add_(1)
    return Original(network)


def _timm(architecture: str, args: dict[str, Any]) -> nn.Module:
    network: nn.Module = timm.create_model(architecture, **args)
    return network


def _transformers(architecture: str, args: dict[str, Any]) -> nn.Module:
    kind = getattr(transformers, architecture)
    network: nn.Module = kind(kind.config_class(**args))
    return network


def _kind(name: str, family: str, architecture: str, **args: Any) -> Kind:
    build = _transformers if family in ("hf_vit", "causal", "encoder", "seq2seq") else _timm
    return Kind(name, family, architecture, tuple(args.items()), build, name in FEW)


KINDS = {
    kind.name: kind
    for kind in (
        _kind("class token", "vit", "vit_tiny_patch16_224", **VIT),
        _kind("average pool", "vit", "vit_tiny_patch16_224", **VIT, global_pool="avg"),
        _kind("DINOv2 registers", "vit", "vit_small_patch14_reg4_dinov2", **VIT),
        _kind("SigLIP", "vit", "vit_base_patch16_siglip_224", **VIT),
        _kind("CLIP", "vit", "vit_base_patch16_clip_224", **VIT),
        _kind("DeiT distilled", "vit", "deit_tiny_distilled_patch16_224", **VIT),
        _kind("EVA02", "eva", "eva02_tiny_patch14_224", **VIT),
        _kind("DINOv3", "eva", "vit_small_patch16_dinov3", **VIT),
        _kind("BEiT", "beit", "beit_base_patch16_224", **VIT),
        _kind("Swin", "swin", "swin_tiny_patch4_window7_224", **SWIN),
        _kind("Swin V2", "swin", "swinv2_tiny_window8_256", **SWIN),
        _kind("Hiera", "hiera", "hiera_tiny_224", **HIERA),
        _kind("Hugging Face ViT", "hf_vit", "ViTForImageClassification", **HUGGING_FACE),
        _kind(
            "Hugging Face DINOv2",
            "hf_vit",
            "Dinov2WithRegistersForImageClassification",
            **HUGGING_FACE,
            num_register_tokens=3,
        ),
        _kind("Llama", "causal", "LlamaForSequenceClassification", **TEXT, num_key_value_heads=2),
        _kind("RoBERTa", "encoder", "RobertaForSequenceClassification", **TEXT),
        _kind("GPT-2", "causal", "GPT2ForSequenceClassification", **TEXT),
        _kind("BERT", "encoder", "BertForSequenceClassification", **TEXT),
        _kind("DeBERTa", "encoder", "DebertaV2ForSequenceClassification", **TEXT, **DEBERTA),
        _kind("T5", "seq2seq", "T5ForConditionalGeneration", **T5),
    )
}


def batch(kind: Kind | None = None) -> dict[str, Tensor]:
    """Six images of 32 x 32 pixels, or padded texts of up to 8 tokens, with labels."""
    generator = torch.Generator().manual_seed(1)
    labels = {"labels": torch.arange(ROWS) % CLASSES}
    if kind is None or not kind.text:
        return {"pixels": torch.randn(ROWS, 3, 32, 32, generator=generator), **labels}
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < LENGTH - torch.arange(ROWS)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, **labels}
