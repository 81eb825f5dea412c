"""The timm ViT family: features, sites, points and inserted tokens."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from gistcli.backbones import Backbone, Switch
from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.errors import NotSupported, Refused, UnknownName


def logits(backbone: Backbone, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone({"pixels": pixels}).logits


def test_features_are_those_of_the_plain_timm_model(tiny: Backbone, pixels: Tensor) -> None:
    with torch.no_grad():
        features = tiny({"pixels": pixels})
        assert torch.equal(features.logits, tiny.model(pixels))
        assert torch.equal(features.tokens, tiny.model.forward_features(pixels))
    layout = features.layout
    assert layout.total == features.tokens.shape[1]
    assert layout.grid == (4, 4)
    assert layout.patches == slice(layout.total - 16, layout.total)


def test_the_grid_is_not_square_where_the_image_is_not(pixels: Tensor) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, embed_dim=24, depth=1, num_heads=2
    )
    backbone = ViT(model, Origin("tiny", "vit_tiny_patch16_224"))
    features = backbone({"pixels": torch.zeros(1, 3, 32, 48)})
    assert features.layout.grid == (4, 6)
    assert backbone.data_config()["input_size"] == (3, 32, 48)


def test_another_architecture_is_refused() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=12)
    with pytest.raises(NotSupported, match="SwinTransformer"):
        ViT(swin, Origin("swin", "swin_tiny_patch4_window7_224"))


def test_roles_and_family_names_and_paths_name_the_same_sites(tiny: Backbone) -> None:
    by_role = [s.name for s in tiny.sites(["attn_out"])]
    assert by_role == ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    assert [s.name for s in tiny.sites(["attn.proj"])] == by_role
    assert [s.name for s in tiny.sites(["proj"])] == by_role
    assert [s.name for s in tiny.sites(by_role[1:])] == by_role[1:]
    assert [s.layer for s in tiny.sites(["fc_in", "query"], [-1])] == [1, 1]


def test_every_target_must_match(tiny: Backbone) -> None:
    with pytest.raises(UnknownName, match="'atn_out', 'v_prj'") as caught:
        tiny.sites(["query", "atn_out", "v_prj"])
    assert "attn_out" in caught.value.hint


def test_a_suffix_matches_at_a_dot_only(tiny: Backbone) -> None:
    with pytest.raises(UnknownName):
        tiny.sites(["roj"])


@pytest.mark.parametrize("layers", [[2], [-3], []])
def test_a_layer_that_does_not_exist_is_refused(tiny: Backbone, layers: list[int]) -> None:
    with pytest.raises(Refused, match="2 layers"):
        tiny.sites(["attn_out"], layers)


def test_a_fused_map_and_its_slice_are_not_both_targets(tiny: Backbone) -> None:
    with pytest.raises(Refused, match="part of another target"):
        tiny.sites(["qkv", "query"])


def test_the_three_slices_are_the_rows_of_the_fused_map(tiny: Backbone) -> None:
    query, key, value = tiny.sites(["query", "key", "value"], [0])
    fused = tiny.sites(["qkv"], [0])[0]
    assert torch.equal(torch.cat([s.weight() for s in (query, key, value)]), fused.weight())
    assert (query.d_in, query.d_out, fused.d_out) == (24, 24, 72)


def test_a_mapped_input_is_what_the_weight_sees(tiny: Backbone, pixels: Tensor) -> None:
    site, switch, base = tiny.sites(["attn_out"], [1])[0], Switch(), logits(tiny, pixels)
    matrix = torch.randn(24, 24)
    site.map_input(lambda x: x @ matrix, switch)
    changed = logits(tiny, pixels)
    switch.release()
    with torch.no_grad():
        old = site.module.weight.clone()
        site.module.weight.copy_(old @ matrix.t())
        assert torch.allclose(logits(tiny, pixels), changed, atol=1e-5)
        site.module.weight.copy_(old)
    assert not torch.allclose(base, changed, atol=1e-2)
    assert torch.equal(logits(tiny, pixels), base)


def test_an_added_output_reaches_the_rows_of_its_slice_alone(
    tiny: Backbone, pixels: Tensor
) -> None:
    site, switch = tiny.sites(["key"], [0])[0], Switch()
    with tiny.capture(tiny.sites(["qkv"], [0])) as before:
        logits(tiny, pixels)
    site.add_output(lambda x: torch.ones(*x.shape[:-1], 24), switch)
    with tiny.capture(tiny.sites(["qkv"], [0])) as after:
        logits(tiny, pixels)
    difference = after["blocks.0.attn.qkv"] - before["blocks.0.attn.qkv"]
    assert torch.equal(difference[..., :24], torch.zeros_like(difference[..., :24]))
    assert torch.allclose(difference[..., 24:48], torch.ones(24), atol=1e-5)
    assert torch.equal(difference[..., 48:], torch.zeros_like(difference[..., 48:]))


def test_a_slice_has_no_input_of_its_own(tiny: Backbone) -> None:
    with pytest.raises(ValueError, match="shared with other rows"):
        tiny.sites(["query"])[0].map_input(lambda x: x, Switch())


def test_a_gate_limits_a_site_to_its_tokens(tiny: Backbone, pixels: Tensor) -> None:
    site, switch = tiny.sites(["fc_in"], [0])[0], Switch()
    total = tiny.layout_of(pixels).total
    switch.gate = torch.zeros(1, total, 1)
    switch.gate[:, 2] = 1
    with tiny.capture([site]) as before:
        logits(tiny, pixels)
    site.map_input(lambda x: x + 1, switch)
    with tiny.capture([site]) as after:
        logits(tiny, pixels)
    moved = (after[site.name] - before[site.name]).abs().amax(dim=(0, 2))
    assert moved[2] > 0
    assert moved.sum() == moved[2]


def test_two_switches_on_one_site_act_independently(tiny: Backbone, pixels: Tensor) -> None:
    site, one, two = tiny.sites(["fc_out"], [0])[0], Switch(), Switch()
    base = logits(tiny, pixels)
    site.map_input(lambda x: x * 2, one)
    only_one = logits(tiny, pixels)
    site.map_input(lambda x: x + 1, two)
    both = logits(tiny, pixels)
    two.enabled = False
    assert torch.equal(logits(tiny, pixels), only_one)
    one.enabled = False
    assert torch.equal(logits(tiny, pixels), base)
    assert not torch.allclose(only_one, base)
    assert not torch.allclose(both, only_one)


@pytest.mark.parametrize("after", ["attention", "mlp", "attn_out", "fc_in", "fc_out", "qkv"])
def test_a_point_sees_its_branch(tiny: Backbone, pixels: Tensor, after: str) -> None:
    point, switch, base = tiny.point(after, 1), Switch(), logits(tiny, pixels)
    shapes = {}

    def keep(x_in: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        shapes.update(x_in=x_in.shape[-1], y=y.shape[-1], residual=residual.shape[-1])
        return y

    point.map_output(keep, switch)
    assert torch.equal(logits(tiny, pixels), base)
    assert shapes["residual"] == 24
    assert shapes["y"] == point.width
    switch.release()
    point.map_output(lambda x_in, y, residual: 2 * y, switch)
    assert not torch.allclose(logits(tiny, pixels), base)


def test_a_point_after_attention_holds_the_block_together(pixels: Tensor, tiny: Backbone) -> None:
    block, switch, seen = tiny.model.blocks[0], Switch(), {}

    def keep(x_in: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        seen.update(x_in=x_in, y=y, residual=residual)
        return y

    tiny.point("attention", 0).map_output(keep, switch)
    logits(tiny, pixels)
    with torch.no_grad():
        assert torch.equal(seen["x_in"], block.norm1(seen["residual"]))
        assert torch.allclose(seen["y"], block.attn(seen["x_in"]), atol=1e-6)


def test_an_inserted_token_takes_part_and_is_not_pooled(tiny: Backbone, pixels: Tensor) -> None:
    base, switch = tiny({"pixels": pixels}), Switch()
    token = nn.Parameter(torch.randn(2, 24))
    tiny.insert_tokens("gist", 2, lambda n: token.expand(n, -1, -1), switch)
    features = tiny({"pixels": pixels})
    assert features.layout.total == base.layout.total + 2
    cls = base.layout.lengths["cls"]
    assert features.layout.span("gist") == slice(cls, cls + 2)
    assert not torch.allclose(features.logits, base.logits)
    assert tiny.read_out(features, "gist").shape == features.logits.shape
    features.logits.sum().backward()
    assert token.grad is not None
    assert token.grad.abs().sum() > 0
    switch.enabled = False
    assert torch.equal(logits(tiny, pixels), base.logits.detach())
    switch.release()
    assert torch.equal(logits(tiny, pixels), base.logits.detach())


@pytest.mark.parametrize("tiny", ["class token"], indirect=True)
def test_an_inserted_token_is_a_register_of_a_stock_vit(tiny: Backbone, pixels: Tensor) -> None:
    token = torch.randn(1, 3, 24)
    tiny.insert_tokens("prompts", 3, lambda n: token.expand(n, -1, -1), Switch())
    stock = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2,
        num_classes=5, reg_tokens=3,
    ).eval()  # fmt: skip
    state = tiny.model.state_dict()
    position = state["pos_embed"]
    zeros = torch.zeros(1, 3, 24)
    state["pos_embed"] = torch.cat([position[:, :1], zeros, position[:, 1:]], dim=1)
    stock.load_state_dict({**state, "reg_token": token})
    with torch.no_grad():
        assert torch.equal(stock(pixels), logits(tiny, pixels))


def test_the_new_head_follows_its_seed(tiny: Backbone) -> None:
    tiny.reset_head(7, seed=3)
    first = tiny.model.head.weight.clone()
    tiny.reset_head(7, seed=3)
    assert torch.equal(tiny.model.head.weight, first)
    tiny.reset_head(7, seed=4)
    assert not torch.equal(tiny.model.head.weight, first)
    assert tiny.head_names() == ["head.weight", "head.bias"]
    assert not any(p.requires_grad for p in tiny.model.parameters())
    assert 0.015 < first.std() < 0.025
    assert tiny.model.head.bias.abs().sum() == 0
