"""What is Eva's own: rotary positions, a qkv whose weight is read, keys of their own width."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.eva import EvaBlockPostNorm
from torch import Tensor, nn

from gistcli.backbones import Backbone, Switch, open_backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.eva import EvaViT
from gistcli.backbones.loading import supported_models
from gistcli.errors import NotSupported

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def network(architecture: str, **more: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5, **{**TINY, **more})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def build(architecture: str = "eva02_tiny_patch14_224", **more: Any) -> Backbone:
    return EvaViT(network(architecture, **more), Origin("tiny", architecture)).eval()


def logits(backbone: Backbone, pixels: Tensor = PIXELS) -> Tensor:
    with torch.no_grad():
        return backbone({"pixels": pixels}).logits


def test_a_hook_on_the_fused_projection_would_be_dead() -> None:
    backbone, calls = build(), []
    site = backbone.sites(["query"], [0])[0]
    site.module.register_forward_hook(lambda *_: calls.append(1))
    logits(backbone)
    assert not calls
    assert site.parent is backbone.blocks[0].attn
    unbiased = build("vit_small_patch16_dinov3").sites(["query"], [0])[0]
    assert unbiased.parent is None


def test_a_weight_that_is_read_cannot_change_for_some_tokens() -> None:
    backbone, switch = build(), Switch()
    site = backbone.sites(["key"], [1])[0]
    site.add_output(lambda x: x, switch)
    switch.gate = torch.ones(1, 17, 1)
    with pytest.raises(NotSupported, match="some tokens alone"):
        logits(backbone)
    switch.release()
    logits(backbone)


def test_projections_of_their_own_are_sites_with_their_own_widths() -> None:
    backbone = build("vit_base_patch16_sapiens2", num_kv_heads=(2, 1))
    found = [(s.module_name, s.d_out) for s in backbone.sites(["query", "key", "value"])]
    assert found == [
        ("blocks.0.attn.q_proj", 24),
        ("blocks.0.attn.k_proj", 24),
        ("blocks.0.attn.v_proj", 24),
        ("blocks.1.attn.q_proj", 24),
        ("blocks.1.attn.k_proj", 12),
        ("blocks.1.attn.v_proj", 12),
    ]
    roles = [s.role for s in build("eva02_base_patch16_clip_224").all_sites() if s.layer == 0]
    assert roles == ["query", "key", "value", "attn_out", "fc_gate", "fc_in", "fc_out"]


def test_inserted_tokens_are_not_rotated() -> None:
    backbone, switch = build("vit_small_patch16_rope_224"), Switch()
    base = logits(backbone)
    token = torch.randn(1, 2, 24)
    backbone.insert_tokens("gist", 2, lambda n: token.expand(n, -1, -1), switch)
    counted = logits(backbone)
    assert [block.attn.num_prefix_tokens for block in backbone.blocks] == [3, 3]
    for block in backbone.blocks:
        block.attn._forward_pre_hooks.clear()
        block.attn.num_prefix_tokens = 1
    with pytest.raises(RuntimeError, match="size of tensor"):
        logits(backbone)
    switch.release()
    assert torch.equal(logits(backbone), base)
    assert not torch.allclose(counted, base)


def test_the_count_of_prefix_tokens_goes_back() -> None:
    backbone, switch = build("vit_small_patch16_dinov3"), Switch()
    token = torch.randn(1, 3, 24)
    backbone.insert_tokens("gist", 3, lambda n: token.expand(n, -1, -1), switch)
    logits(backbone)
    switch.enabled = False
    logits(backbone)
    assert [block.attn.num_prefix_tokens for block in backbone.blocks] == [5, 5]


def test_blocks_that_norm_afterwards_are_refused() -> None:
    model = network("eva02_enormous_patch14_clip_224", mlp_ratio=2.0)
    assert isinstance(model.blocks[0], EvaBlockPostNorm)
    with pytest.raises(NotSupported, match="post-norm"):
        EvaViT(model, Origin("tiny", "eva02_enormous_patch14_clip_224"))


def test_a_gated_attention_is_refused() -> None:
    model = network("eva02_tiny_patch14_224")
    model.blocks[1].attn.gate = nn.Linear(24, 24)
    with pytest.raises(NotSupported, match="gated"):
        EvaViT(model, Origin("tiny", "eva02_tiny_patch14_224"))


def test_names_of_the_family_open_without_weights() -> None:
    names = supported_models()
    for name, size, tokens in [
        ("eva02_base_patch14_448", 224, 1 + 16**2),
        ("vit_small_patch16_dinov3", 224, 5 + 14**2),
        ("vit_base_patch16_rope_224", 112, 1 + 7**2),
        ("vit_pe_core_base_patch16_224", None, 1 + 14**2),
    ]:
        assert name in names
        backbone = open_backbone(name, img_size=size, meta=True)
        side = size or 224
        assert backbone.layout_of(torch.empty(1, 3, side, side)).total == tokens
        assert backbone.data_config()["input_size"] == (3, side, side)
        assert backbone.depth == 12
