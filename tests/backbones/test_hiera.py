"""Hiera: pooling inside attention, tokens out of order, two kinds of position embedding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gistcli.backbones import Backbone, open_backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.hiera import HieraViT
from gistcli.backbones.loading import supported_models
from gistcli.errors import Refused
from tests.backbones.hierarchical import build, maps_of, network, seen_at
from tests.backbones.kinds import logits

HIERAS = ("Hiera", "Hiera, absolute windows")


@pytest.fixture(params=HIERAS)
def tiny(request: pytest.FixtureRequest) -> Backbone:
    return build(request.param)


def test_networks_of_other_tasks_do_not_belong_to_the_family() -> None:
    assert "hiera_small_abswin_256" in supported_models()
    assert "sam2_hiera_tiny" not in supported_models()


def test_the_published_network_has_its_sites_and_grid() -> None:
    backbone = open_backbone("hiera_base_224", meta=True)
    assert backbone.depth == 24
    assert [s.d_out for s in backbone.sites(["attn_out"], [0, 2, 5, 21])] == [96, 192, 384, 768]
    pooling = backbone.sites(["qkv"], [2])[0]
    assert (pooling.d_in, pooling.d_out) == (96, 3 * 192)
    assert backbone.data_config()["input_size"] == (3, 224, 224)
    assert backbone.layout_of(torch.empty(1, 3, 224, 224, device="meta")).grid == (7, 7)


def test_a_pooling_block_is_not_aligned_and_the_others_are(tiny: Backbone) -> None:
    for layer, block in enumerate(tiny.blocks):
        pools = block.attn.q_stride > 1
        assert pools == (layer in (1, 3))
        assert tiny.point("attention", layer).aligned is not pools
        assert tiny.point("attn_out", layer).aligned is not pools
        assert tiny.point("attention", layer).width == block.dim_out
        assert tiny.point("qkv", layer).aligned
        assert tiny.point("mlp", layer).aligned


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_a_point_holds_its_branch_together(tiny: Backbone, pixels: Tensor, branch: str) -> None:
    for layer, block in enumerate(tiny.blocks):
        seen = seen_at(tiny, branch, layer, pixels)
        first = branch == "attention"
        norm, compute, scale = (
            (block.norm1, block.attn, block.ls1) if first else (block.norm2, block.mlp, block.ls2)
        )
        with torch.no_grad():
            assert torch.equal(seen["x_in"], norm(seen["residual"]))
            assert torch.equal(seen["y"], scale(compute(seen["x_in"])))


def test_the_residual_projection_has_no_role() -> None:
    backbone = build("Hiera")
    assert "blocks.1.proj" in {output.name for output in backbone.outputs()}
    assert "blocks.1.proj" not in {site.module_name for site in backbone.all_sites()}
    assert {site.role for site in backbone.sites(["proj"])} == {"attn_out"}


@pytest.mark.parametrize("img_size", [48, (32, 40), 35 * 4])
def test_an_image_size_that_mask_units_do_not_divide_is_refused(
    img_size: int | tuple[int, int],
) -> None:
    if img_size == 48:  # 12 tokens: three mask units of 4
        assert build("Hiera", img_size=img_size).data_config()["input_size"] == (3, 48, 48)
        return
    model = network("Hiera", img_size=img_size)
    with pytest.raises(Refused, match="cannot take images") as caught:
        HieraViT(model, Origin("tiny", "hiera_tiny_224"))
    assert "multiples of 16 and 16" in caught.value.hint


def test_the_published_sizes_are_multiples_of_32() -> None:
    assert open_backbone("hiera_small_abswin_256", img_size=224, meta=True).depth == 16
    with pytest.raises(Refused) as caught:
        open_backbone("hiera_small_abswin_256", img_size=240, meta=True)
    assert "multiples of 32 and 32" in caught.value.hint


@pytest.mark.parametrize("img_size", [256, (1568, 32)])
def test_absolute_positions_are_of_one_image_size_though_as_many_tokens_would_fit(
    img_size: int | tuple[int, int],
) -> None:
    with pytest.raises(Refused, match="cannot take images") as caught:
        open_backbone("hiera_tiny_224", img_size=img_size, meta=True)
    assert "leave model.img_size out" in caught.value.hint
    assert open_backbone("hiera_tiny_224", img_size=224, meta=True).depth == 12


def place(row: int, column: int, side: int, strides: int) -> int:
    """Where the token at (row, column) of a square grid stands after `strides` unrolls by 2."""
    position, length = 0, side * side
    for _ in range(strides):
        length //= 4
        position += ((row % 2) * 2 + column % 2) * length
        row, column, side = row // 2, column // 2, side // 2
    return position + row * side + column


@pytest.mark.parametrize(
    ("role", "layer", "side", "strides"),
    [
        ("qkv", 0, 8, 2),
        ("fc_out", 0, 8, 2),
        ("value", 1, 8, 2),  # before the pooling of its own block
        ("attn_out", 1, 4, 1),  # behind it
        ("fc_in", 2, 4, 1),
        ("qkv", 3, 4, 1),
        ("fc_in", 3, 2, 0),
    ],
)
def test_a_map_is_the_unrolled_index_written_out(
    tiny: Backbone, pixels: Tensor, role: str, layer: int, side: int, strides: int
) -> None:
    site = tiny.sites([role], [layer])[0]
    with tiny.capture([site]) as seen:
        logits(tiny, pixels)
    y = seen[site.name]
    got = tiny.patch_map(site, y)
    assert got.shape == (len(pixels), side, side, site.d_out)
    for row in range(side):
        for column in range(side):
            assert torch.equal(got[:, row, column], y[:, place(row, column, side, strides)])


@pytest.mark.parametrize("name", HIERAS)
def test_maps_of_a_wide_image_have_its_rows_and_columns(name: str) -> None:
    backbone = build(name, img_size=(32, 64))
    pixels = torch.randn(2, 3, 32, 64)
    assert maps_of(backbone, "fc_in", 0, pixels).shape[1:3] == (8, 16)
    assert maps_of(backbone, "fc_in", 3, pixels).shape[1:3] == (2, 4)
    assert backbone({"pixels": pixels}).layout.grid == (2, 4)


def test_a_marked_patch_is_where_the_map_changes(tiny: Backbone, pixels: Tensor) -> None:
    row, column = 2, 5
    marked = pixels.clone()
    # the kernel of 7 x 7 pixels around (4 r, 4 c) has this one alone in common with no neighbour
    marked[..., 4 * row, 4 * column] += 3
    for role in ("qkv", "fc_in"):
        first, second = (maps_of(tiny, role, 0, image) for image in (pixels, marked))
        change = (second - first).norm(dim=-1)
        assert (change.flatten(1).argmax(1) == 8 * row + column).all()
        change[:, row, column] = 0
        assert role != "qkv" or change.max() == 0


@pytest.mark.parametrize("name", HIERAS)
def test_tokens_are_in_rows_where_not_every_stage_pools(name: str, pixels: Tensor) -> None:
    backbone = build(name, q_pool=1, mask_unit_size=(4, 4))
    with torch.no_grad():
        features = backbone({"pixels": pixels})
        plain = backbone.model.forward_features(pixels)
        assert torch.equal(features.logits, backbone.model(pixels))
    assert features.layout.grid == (4, 4)
    assert not torch.equal(features.tokens, plain)
    for row in range(4):
        for column in range(4):
            token = features.tokens[:, 4 * row + column]
            assert torch.equal(token, plain[:, place(row, column, 4, 1)])
