"""Two-block networks of transformers with random weights, one for every kind of the family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from gistcli.backbones import Backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.hf_vit import HFViT

SIZE = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8, "num_labels": 5,
}  # fmt: skip
ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViT", {"intermediate_size": 48}),
    "ViT-MSN": ("ViTMSN", {"intermediate_size": 48, "qkv_bias": False}),
    "DeiT": ("DeiT", {"intermediate_size": 48}),
    "DINOv2": ("Dinov2", {"mlp_ratio": 2}),
    "DINOv2 gated": ("Dinov2", {"mlp_ratio": 2, "use_swiglu_ffn": True, "use_mask_token": False}),
    "DINOv2 registers": ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 3}),
}


def network(kind: str, **more: Any) -> Any:
    """A network whose weights are far from any initialisation."""
    name, arguments = ARGUMENTS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZE, **arguments, **more})
    generator = torch.Generator().manual_seed(0)
    model: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model


def build(kind: str, **more: Any) -> Backbone:
    """The network as a backbone, in evaluation mode."""
    model = network(kind, **more)
    return HFViT(model, Origin(kind, type(model).__name__)).eval()


KINDS: dict[str, Callable[[], Backbone]] = {kind: partial(build, kind) for kind in ARGUMENTS}
