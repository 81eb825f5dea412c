"""Swin and Swin V2: windows, norms behind the branches, weights that attention reads itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones import Backbone, open_backbone
from gistcli.backbones.loading import supported_models
from tests.backbones.hierarchical import build, maps_of, seen_at
from tests.backbones.kinds import logits

SWINS = ("Swin", "Swin, padded windows", "Swin V2", "Swin V2 without biases")


@pytest.fixture(params=SWINS)
def tiny(request: pytest.FixtureRequest) -> Backbone:
    return build(request.param)


def test_the_searched_variants_belong_to_the_family_and_continuous_ones_do_not() -> None:
    names = supported_models()
    for name in ("swin_s3_tiny_224", "swinv2_base_window12to16_192to256"):
        assert name in names
    assert "swinv2_cr_tiny_224" not in names


def test_the_published_network_has_its_sites_and_grids() -> None:
    backbone = open_backbone("swin_base_patch4_window7_224", meta=True)
    assert backbone.depth == 24
    assert sorted(set(backbone.widths)) == [128, 256, 512, 1024]
    assert [s.d_in for s in backbone.sites(["fc_out"], [0, 2, 4, 22])] == [512, 1024, 2048, 4096]
    layout: Any = backbone.layout_of(torch.empty(1, 3, 224, 224, device="meta"))
    assert layout.stages == ((56, 56), (28, 28), (14, 14), (7, 7))
    assert backbone.head_names() == ["head.fc.weight", "head.fc.bias"]


@pytest.mark.parametrize("img_size", [60, (64, 36), 100])
@pytest.mark.parametrize("name", SWINS)
def test_no_image_size_needs_to_fit_the_windows(name: str, img_size: int | tuple[int, int]) -> None:
    backbone = build(name, img_size=img_size)
    height, width = backbone.data_config()["input_size"][1:]
    features = backbone({"pixels": torch.randn(2, 3, height, width)})
    rows, columns = features.layout.grid
    assert features.tokens.shape[1] == rows * columns
    assert torch.isfinite(features.logits).all()


@pytest.mark.parametrize("name", ["Swin V2", "Swin"])
def test_only_a_network_that_reads_the_weight_has_a_parent(name: str) -> None:
    backbone = build(name)
    parents = {s.role for s in backbone.all_sites() if s.parent is not None}
    bypassed = {o.name for o in backbone.outputs() if o.bypassed}
    if name == "Swin":
        assert not parents
        assert not bypassed
    else:
        assert parents == {"qkv", "query", "key", "value"}
        assert bypassed == {s.name for s in backbone.sites(["qkv"])}


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_a_point_holds_its_branch_together(tiny: Backbone, pixels: Tensor, branch: str) -> None:
    for layer, block in enumerate(tiny.blocks):
        seen = seen_at(tiny, branch, layer, pixels)
        compute, norm = (
            (block._attn, block.norm1) if branch == "attention" else (block.mlp, block.norm2)
        )
        with torch.no_grad():
            if "swinv2" in tiny.architecture:
                assert seen["x_in"] is seen["residual"]
                assert torch.equal(seen["y"], norm(compute(seen["x_in"])))
            else:
                assert torch.equal(seen["x_in"], norm(seen["residual"]))
                assert torch.equal(seen["y"], compute(seen["x_in"]))
        assert seen["y"].ndim == (4 if branch == "attention" else 3)


def spatial(backbone: Backbone, pixels: Tensor) -> dict[str, Tensor]:
    """(B, h, w, d_out) of every site, from tensors that timm itself keeps in rows and columns."""
    found: dict[str, Tensor] = {}
    handles = []

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, y: Tensor | None = None) -> None:
            found[name] = args[0] if y is None else y

        return hook

    first = "swinv2" not in backbone.architecture
    for path, block in zip(backbone.block_paths, backbone.blocks, strict=True):
        if first:
            handles.append(block.norm1.register_forward_hook(keep(f"{path}.in")))
            handles.append(block.drop_path1.register_forward_pre_hook(keep(f"{path}.out")))
        else:
            handles.append(block.register_forward_pre_hook(keep(f"{path}.in")))
            handles.append(block.norm1.register_forward_pre_hook(keep(f"{path}.out")))
    logits(backbone, pixels)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("img_size", [32, (40, 24)])
@pytest.mark.parametrize("name", SWINS)
def test_maps_are_in_rows_and_columns_again(name: str, img_size: int | tuple[int, int]) -> None:
    tiny = build(name, img_size=img_size)
    height, width = tiny.data_config()["input_size"][1:]
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    sites = tiny.all_sites()
    with tiny.capture(sites) as seen:
        logits(tiny, pixels)
    wanted = spatial(tiny, pixels)
    assert any(sum(block.shift_size) for block in tiny.blocks)
    for site in sites:
        got = tiny.patch_map(site, seen[site.name])
        path = tiny.block_paths[site.layer]
        if site.role == "attn_out":
            assert torch.equal(got, wanted[f"{path}.out"])
        elif site.role in ("query", "key", "value", "qkv"):
            attention = tiny.blocks[site.layer].attn
            bias = attention.qkv.bias
            if site.parent is not None:
                bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            by_hand = F.linear(wanted[f"{path}.in"], attention.qkv.weight, bias)
            torch.testing.assert_close(got, by_hand[..., site.rows or slice(None)])
        else:
            assert torch.equal(got.flatten(1, 2), seen[site.name])
            assert got.shape[1:3] == wanted[f"{path}.in"].shape[1:3]


def test_a_map_is_the_window_index_written_out() -> None:
    tiny = build("Swin, padded windows")  # grid 8 x 8, windows of 3 x 3, padded to 9 x 9
    site = tiny.sites(["attn_out"], [1])[0]
    block: Any = tiny.blocks[1]
    assert (block.window_size, block.shift_size) == ((3, 3), (1, 1))
    logits(tiny, torch.zeros(2, 3, 32, 32))
    y = torch.randn(2 * 9, 9, 5)
    got = tiny.patch_map(site, y)
    assert got.shape == (2, 8, 8, 5)
    for image in range(2):
        for row in range(8):
            for column in range(8):
                r, c = (row - 1) % 8, (column - 1) % 8  # rolled by -1 before the windows are cut
                window, token = 9 * image + 3 * (r // 3) + c // 3, 3 * (r % 3) + c % 3
                assert torch.equal(got[image, row, column], y[window, token])


def test_a_marked_patch_is_where_the_map_changes(tiny: Backbone, pixels: Tensor) -> None:
    row, column = 2, 5
    marked = pixels.clone()
    marked[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 3
    for role in ("qkv", "fc_in"):
        first, second = (maps_of(tiny, role, 0, image) for image in (pixels, marked))
        change = (second - first).norm(dim=-1)
        assert (change.flatten(1).argmax(1) == 8 * row + column).all()
        others = change.clone()
        others[:, row, column] = 0
        assert role != "qkv" or others.max() < 1e-6
