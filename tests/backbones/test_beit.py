"""What is BEiT's own: biases of relative positions, of a block or of all, also with more tokens."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from gistcli.backbones import Backbone, Switch, open_backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.beit import Beit, extended
from gistcli.backbones.loading import supported_models

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
NAME = "beit_base_patch16_224"
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
KINDS = {
    "own": {},
    "shared": {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    "both": {"use_shared_rel_pos_bias": True},
    "none": {"use_rel_pos_bias": False, "use_abs_pos_emb": True},
}


def network(**more: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=5, **{**TINY, **more})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return Beit(network(**KINDS[request.param]), Origin("tiny", NAME)).eval().double()


def logits(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return backbone({"pixels": PIXELS}).logits


def with_tokens(model: Any, tokens_PD: Tensor) -> Tensor:
    """Logits by the formula: softmax of scaled products plus the bias between images' tokens."""
    x = model.patch_embed(PIXELS.double())
    cls, own = model.cls_token.expand(len(x), -1, -1), torch.cat
    x = own([cls, x], dim=1)
    if model.pos_embed is not None:
        x = x + model.pos_embed
    x = own([x[:, :1], tokens_PD.expand(len(x), -1, -1), x[:, 1:]], dim=1)
    old = [0, *range(1 + len(tokens_PD), x.shape[1])]
    shared = None if model.rel_pos_bias is None else model.rel_pos_bias()
    for block in model.blocks:
        attn, parts = block.attn, block.norm1(x)
        bias = parts.new_zeros(2, x.shape[1], x.shape[1])
        for i, row in enumerate(old):
            for j, column in enumerate(old):
                if attn.relative_position_bias_table is not None:
                    index = attn.relative_position_index[i, j]
                    bias[:, row, column] += attn.relative_position_bias_table[index]
                if shared is not None:
                    bias[:, row, column] += shared[:, i, j]
        w_q, w_k, w_v = attn.qkv.weight.chunk(3)
        q, k, v = parts @ w_q.t() + attn.q_bias, parts @ w_k.t(), parts @ w_v.t() + attn.v_bias
        q, k, v = (t.unflatten(-1, (2, 12)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / 12**0.5 + bias).softmax(-1)
        y = attn.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + (y if block.gamma_1 is None else block.gamma_1 * y)
        y = block.mlp(block.norm2(x))
        x = x + (y if block.gamma_2 is None else block.gamma_2 * y)
    return model.forward_head(model.norm(x[:, old]))


@pytest.mark.parametrize("fused", [True, False])
def test_inserted_tokens_have_no_bias(backbone: Backbone, fused: bool) -> None:
    for block in backbone.blocks:
        block.attn.fused_attn = fused
    base, switch, tokens = logits(backbone), Switch(), torch.randn(3, 24).double()
    backbone.insert_tokens("prompts", 3, lambda n: tokens.expand(n, -1, -1), switch)
    changed = logits(backbone)
    switch.enabled = False
    with torch.no_grad():
        expected = with_tokens(backbone.model, tokens)
    assert torch.allclose(changed, expected, rtol=1e-9, atol=1e-12)
    assert (changed - base).abs().max() > 1e-5
    assert torch.equal(logits(backbone), base)


def test_the_formula_of_the_reference_is_timms() -> None:
    model = network().double().eval()
    with torch.no_grad():
        expected = model(PIXELS.double())
        assert torch.allclose(with_tokens(model, torch.empty(0, 24)), expected, atol=1e-12)


def test_a_bias_is_extended_behind_the_class_token() -> None:
    bias = torch.arange(1.0, 10).view(1, 3, 3)
    assert extended(bias, 2).squeeze(0).tolist() == [
        [1, 0, 0, 2, 3],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [4, 0, 0, 5, 6],
        [7, 0, 0, 8, 9],
    ]


def test_a_trained_bias_gets_its_gradient_past_inserted_tokens() -> None:
    backbone = Beit(network(), Origin("tiny", NAME)).eval()
    table = backbone.blocks[0].attn.relative_position_bias_table
    table.requires_grad_()
    token = torch.randn(1, 1, 24)
    backbone.insert_tokens("gist", 1, lambda n: token.expand(n, -1, -1), Switch())
    for checkpointed in (False, True):
        if checkpointed:
            backbone.checkpoint_gradients()
        table.grad, before = None, table.grad
        backbone({"pixels": PIXELS}).logits.sum().backward()
        assert table.grad.abs().max() > 0
        assert before is None or torch.equal(table.grad, before)
        assert "relative_position_bias_table" not in backbone.blocks[0].attn.__dict__


def test_a_hook_on_the_fused_projection_would_be_dead() -> None:
    backbone, calls = Beit(network(), Origin("tiny", NAME)), []
    site = backbone.sites(["query"], [0])[0]
    site.module.register_forward_hook(lambda *_: calls.append(1))
    logits(backbone)
    assert not calls
    assert site.parent is backbone.blocks[0].attn


@pytest.mark.parametrize("name", ["beit_base_patch16_384", "beitv2_base_patch16_224"])
def test_names_of_the_family_open_without_weights(name: str) -> None:
    assert name in supported_models()
    backbone = open_backbone(name, img_size=112, meta=True)
    assert backbone.layout_of(torch.empty(1, 3, 112, 112)).total == 1 + 7**2
    assert backbone.data_config()["input_size"] == (3, 112, 112)
    assert backbone.depth == 12
