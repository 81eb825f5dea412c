"""Tiny plain ViTs of every family, timm's own networks beside them, and maps at all their sites."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones import Backbone, Switch
from gistcli.testing.kinds import KINDS, VIT, Kind


def _kind(name: str, family: str, architecture: str, **args: object) -> Kind:
    build = KINDS["class token"].build
    return Kind(name, family, architecture, tuple({**VIT, **args}.items()), build)


NEW = [
    _kind("DeiT3", "vit", "deit3_small_patch16_224"),
    _kind("DINOv2", "vit", "vit_small_patch14_dinov2"),
    _kind("registers with positions", "vit", "vit_tiny_patch16_224", reg_tokens=4),
    _kind("average beside registers", "vit", "test_vit2"),
    _kind("map over registers", "vit", "test_vit3"),
    _kind("norms of queries and keys", "vit", "vit_tiny_patch16_224", qk_norm=True),
    _kind("differential attention", "vit", "vit_dwee_patch16_reg1_gap_256", qk_norm=True),
    _kind("BEiT 3", "vit", "beit3_base_patch16_224"),
    _kind("AIMv2", "vit", "aimv2_large_patch14_224"),
    _kind("EVA", "eva", "eva_giant_patch14_224"),
    _kind("EVA02", "eva", "eva02_tiny_patch14_224"),
    _kind("EVA02 CLIP", "eva", "eva02_base_patch16_clip_224"),
    _kind("DINOv3 with biases", "eva", "vit_small_patch16_dinov3_qkvb"),
    _kind("RoPE", "eva", "vit_small_patch16_rope_mixed_ape_224"),
    _kind("RoPE registers", "eva", "vit_medium_patch16_rope_reg1_gap_256"),
    _kind("Perception Encoder", "eva", "vit_pe_core_tiny_patch16_384"),
    _kind("Sapiens2", "eva", "vit_base_patch16_sapiens2", num_kv_heads=(2, 1)),
    _kind("BEiT", "beit", "beit_base_patch16_224"),
    _kind("BEiT shared bias", "beit", "beitv2_base_patch16_224", use_shared_rel_pos_bias=True),
]
ALL = {kind.name: kind for kind in (*KINDS.values(), *NEW) if kind.family in ("vit", "eva", "beit")}
WITHOUT_REGISTERS = {
    "DeiT distilled": "no register tokens",
    "map over registers": "pools over all tokens",
    "Perception Encoder": "pools over all tokens",
    "BEiT": "no register tokens",
    "BEiT shared bias": "no register tokens",
}
"""Kind -> why inserted tokens are no registers of it."""


def stock(kind: Kind, backbone: Backbone, **more: object) -> nn.Module:
    """timm's own network with the backbone's weights, without any hook."""
    network = kind.network(num_classes=5, **more).to(next(backbone.parameters()).dtype)
    network.load_state_dict(backbone.model.state_dict(), strict=not more)
    return network.eval()


def logits(backbone: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone({"pixels": pixels}).logits


def random(*shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def require_same(changed: Tensor, expected: Tensor, base: Tensor) -> None:
    """Equal but for rounding, in float64, and not what it was."""
    moved = (changed - base).abs().max()
    assert moved > 1e-8
    assert (changed - expected).abs().max() < 1e-6 * moved


def attach_everything(
    backbone: Backbone, *, tokens: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[Switch, dict[str, nn.Parameter]]:
    """An input map at every whole site, an update of every slice, and tokens where asked for."""
    switch, trained = Switch(), {}
    for site in backbone.all_sites():
        if site.rows is None and site.role != "qkv":
            a = trained[site.name] = nn.Parameter(random(site.d_in, site.d_in, scale=0.1).to(dtype))
            site.map_input(lambda x, a=a: x + x @ a, switch)
        elif site.rows is not None:
            a = trained[site.name] = nn.Parameter(
                random(site.d_out, site.d_in, scale=0.1).to(dtype)
            )
            site.add_output(lambda x, a=a: F.linear(x, a), switch)
    if tokens:
        new = trained["tokens"] = nn.Parameter(random(1, 2, 24).to(dtype))
        backbone.insert_tokens("prompts", 2, lambda n: new.expand(n, -1, -1), switch)
    return switch, trained


def gradients(
    backbone: Backbone, trained: dict[str, nn.Parameter], pixels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    result = backbone({"pixels": pixels}).logits
    result.square().sum().backward()
    found = {}
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        found[name], parameter.grad = parameter.grad, None
    return result.detach(), found
