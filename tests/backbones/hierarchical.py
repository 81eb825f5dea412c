"""Tiny hierarchical networks with random weights: Swin, Swin V2, Hiera."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from gistcli import registry
from gistcli.backbones import Backbone, Switch
from gistcli.backbones.base import Origin
from tests.backbones.kinds import logits

SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4)}
V2 = {**SWIN, "pretrained_window_sizes": (0, 0)}
HIERA = {
    "img_size": 32, "embed_dim": 12, "num_heads": 2, "stages": (1, 2, 1), "q_pool": 2,
    "mask_unit_size": (4, 4), "mask_unit_attn": (True, True, False),
}  # fmt: skip
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Swin": ("swin", "swin_tiny_patch4_window7_224", {**SWIN, "window_size": 4}),
    "Swin, padded windows": ("swin", "swin_tiny_patch4_window7_224", {**SWIN, "window_size": 3}),
    "Swin V2": ("swin", "swinv2_tiny_window8_256", {**V2, "window_size": 4}),
    "Swin V2 without biases": (
        "swin", "swinv2_tiny_window8_256", {**V2, "window_size": 3, "qkv_bias": False},
    ),
    "Hiera": ("hiera", "hiera_tiny_224", HIERA),
    "Hiera, absolute windows": (
        "hiera", "hiera_small_abswin_256", {**HIERA, "global_pos_size": (4, 4)},
    ),
}  # fmt: skip
"""Name -> family, architecture, arguments that make it tiny."""


def network(name: str, **more: Any) -> nn.Module:
    """A network of a kind, as timm builds it."""
    _, architecture, args = NETWORKS[name]
    options = {"num_classes": 5, "drop_path_rate": 0.0, **args, **more}
    model: nn.Module = timm.create_model(architecture, **options)
    return model


def build(name: str, **more: Any) -> Backbone:
    """A backbone of a kind in evaluation mode; `more` are arguments of the architecture."""
    torch.manual_seed(0)
    family, architecture, _ = NETWORKS[name]
    model = network(name, **more)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # else activations are too small to show anything
            nn.init.normal_(module.weight, mean=1, std=0.2)
    backbone: Backbone = registry.resolve("backbones", family)(model, Origin("tiny", architecture))
    return backbone.eval()


def seen_at(backbone: Backbone, after: str, layer: int, pixels: Tensor) -> dict[str, Tensor]:
    """What a method sees at a point: x_in, y and residual."""
    switch, seen = Switch(), {}

    def keep(x_in: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        seen.update(x_in=x_in, y=y, residual=residual)
        return y

    backbone.point(after, layer).map_output(keep, switch)
    logits(backbone, pixels)
    switch.release()
    return seen


def maps_of(backbone: Backbone, role: str, layer: int, pixels: Tensor) -> Tensor:
    """(B, h, w, d_out) of the site of a role in a layer."""
    site = backbone.sites([role], [layer])[0]
    with backbone.capture([site]) as seen:
        logits(backbone, pixels)
    return backbone.patch_map(site, seen[site.name])


KINDS: dict[str, Callable[[], Backbone]] = {name: partial(build, name) for name in NETWORKS}
