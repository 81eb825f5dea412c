"""The maps y C: their values, their tokens, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from gistcli.backbones import Switch
from gistcli.backbones.base import Origin
from gistcli.backbones.swin import Swin
from gistcli.errors import NotSupported, UnknownName, WeightsError
from gistcli.explain.clusters import CHUNK, cluster_maps
from gistcli.methods.base import Tuner
from gistcli.methods.gift import Gift
from gistcli.methods.linear import Linear

PREFIXES = {
    "class token": {},
    "registers": {"reg_tokens": 4},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "non-square": {"img_size": (32, 48), "reg_tokens": 2},
}


def images(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def outputs(tuner: Tuner, path: str, pixels: Tensor) -> Tensor:
    """Output (B, T, O) of a module, read by a plain hook."""
    seen: list[Tensor] = []
    module = tuner.backbone.model.get_submodule(path)
    handle = module.register_forward_hook(lambda m, a, y: seen.append(y))
    with torch.no_grad():
        tuner({"pixels": pixels})
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("options", PREFIXES.values(), ids=PREFIXES)
def test_maps_are_the_tuned_output_times_w_phi_at_the_patches(
    make_tuner: Callable[..., Tuner], options: dict[str, Any]
) -> None:
    tuner = make_tuner(**options)
    model = tuner.backbone.model
    height, width = model.patch_embed.img_size
    pixels = images(2, height, width)
    maps = cluster_maps(tuner, pixels)
    assert maps.maps.dtype == np.float32
    assert maps.layers == [0, 1, 2]
    for layer, name in enumerate(maps.names):
        y_BTO = outputs(tuner, name, pixels)[:, model.num_prefix_tokens :]
        w_OI = model.get_parameter(f"{name}.weight")
        phi_IR = tuner.get_parameter("phi.attn_out")
        by_hand = torch.einsum("bto,oi,ir->brt", y_BTO, w_OI, phi_IR).detach()
        by_hand = by_hand.reshape(2, 4, height // 8, width // 8)
        torch.testing.assert_close(torch.from_numpy(maps.maps[:, layer]), by_hand)


def test_maps_of_row_slices_read_those_rows_only(make_tuner: Callable[..., Tuner]) -> None:
    tuner = make_tuner(("query", "value"))
    maps = cluster_maps(tuner, images())
    assert maps.layers == [0, 0, 1, 1, 2, 2]
    assert maps.label(3) == "layer 1 attn.qkv[value]"
    qkv = tuner.backbone.model.blocks[1].attn.qkv
    value = slice(48, 72)
    y_BTO = outputs(tuner, "blocks.1.attn.qkv", images())[:, 1:, value]
    by_hand = y_BTO @ (qkv.weight[value] @ tuner.get_parameter("phi.value"))
    got = torch.from_numpy(maps.maps[:, 3]).flatten(-2)
    torch.testing.assert_close(got, by_hand.mT.detach())


def test_inserted_tokens_are_not_taken_for_patches(make_tuner: Callable[..., Tuner]) -> None:
    tuner = make_tuner(reg_tokens=1)
    prompts = torch.randn(3, 24, generator=torch.Generator().manual_seed(3))
    tuner.backbone.insert_tokens("prompts", 3, lambda n: prompts.expand(n, -1, -1), Switch())
    maps = cluster_maps(tuner, images())
    y_BTO = outputs(tuner, maps.names[0], images())
    assert y_BTO.shape[1] == 1 + 3 + 1 + 16
    c_OM = tuner.clusters(tuner.sites[0]).detach()
    got = torch.from_numpy(maps.maps[:, 0]).flatten(-2)
    torch.testing.assert_close(got, (y_BTO[:, -16:] @ c_OM).mT)


def test_many_images_give_the_maps_that_they_give_alone(make_tuner: Callable[..., Tuner]) -> None:
    tuner = make_tuner()
    pixels = images(CHUNK + 1)
    together, alone = cluster_maps(tuner, pixels), cluster_maps(tuner, pixels[-1:])
    assert len(together.maps) == len(together.logits) == CHUNK + 1
    np.testing.assert_allclose(together.maps[-1], alone.maps[0], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        logits = tuner({"pixels": pixels[-1:]}).logits
    np.testing.assert_allclose(together.logits[-1], logits[0], rtol=1e-4, atol=1e-4)


def test_looking_leaves_mode_and_gradients_as_they_were(make_tuner: Callable[..., Tuner]) -> None:
    tuner = make_tuner(proj_drop_rate=0.5)
    tuner.train()
    tuner.backbone.train()
    tuner.backbone.model.blocks[0].eval()
    first, second = cluster_maps(tuner, images()), cluster_maps(tuner, images())
    np.testing.assert_array_equal(first.maps, second.maps)
    assert tuner.training
    assert tuner.backbone.model.blocks[1].training
    assert not tuner.backbone.model.blocks[0].training
    assert all(t.parameter.requires_grad for t in tuner.trainable().values())


def test_chosen_layers_count_from_either_end(make_tuner: Callable[..., Tuner]) -> None:
    tuner = make_tuner()
    every = cluster_maps(tuner, images())
    chosen = cluster_maps(tuner, images(), [-1, 0])
    assert chosen.layers == [0, 2]
    np.testing.assert_array_equal(chosen.maps, every.maps[:, [0, 2]])
    assert chosen.sites_of([-1]) == [1]
    assert every.sites_of(None) == [0, 1, 2]
    assert every.clusters_of([3, 1, 3]) == [1, 3]


def test_unknown_layers_and_clusters_are_named_with_the_known_ones(
    make_tuner: Callable[..., Tuner],
) -> None:
    tuner = make_tuner()
    with pytest.raises(UnknownName, match="layers 3, -4 have no map") as caught:
        cluster_maps(tuner, images(), [0, 3, -4])
    assert "0 to 2" in caught.value.hint
    maps = cluster_maps(tuner, images(), [0, 2])
    with pytest.raises(UnknownName, match="layer 1 has no map") as caught:
        maps.sites_of([1])
    assert "0, 2" in caught.value.hint
    with pytest.raises(UnknownName, match="cluster 4 has no map") as caught:
        maps.clusters_of([0, 4])
    assert "0 to 3" in caught.value.hint
    with pytest.raises(UnknownName, match="No cluster is named"):
        maps.clusters_of([])


def test_a_method_without_clusters_is_refused(make_tuner: Callable[..., Tuner]) -> None:
    tuner = make_tuner()
    tuner.detach()
    with pytest.raises(NotSupported, match="linear has no clusters"):
        cluster_maps(Linear().attach(tuner.backbone), images())


def test_broken_weights_are_refused(make_tuner: Callable[..., Tuner]) -> None:
    tuner = make_tuner()
    tuner.get_parameter("phi.attn_out").data[0, 0] = torch.nan
    with pytest.raises(WeightsError, match="not finite"):
        cluster_maps(tuner, images())


@pytest.fixture
def swin() -> Tuner:
    """GIFT on a Swin of two stages of two blocks, with grids of 8 x 8 and 4 x 4."""
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, embed_dim=12, depths=(2, 2),
        num_heads=(2, 4), window_size=3, num_classes=5,
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    backbone = Swin(model, Origin("tiny", "swin_tiny_patch4_window7_224")).eval()
    tuner = Gift(rank=4, targets=["attn_out", "fc_out"]).attach(backbone)
    for trained in tuner.trainable().values():
        torch.nn.init.normal_(trained.parameter, std=0.2)
    return tuner


def test_maps_of_shifted_windows_are_in_rows_and_columns(swin: Tuner) -> None:
    maps = cluster_maps(swin, images(), [1])
    assert maps.maps.shape == (2, 2, 4, 8, 8)
    assert maps.label(0) == "layer 1 attn.proj"
    # timm brings y back itself, behind the tuned map: nothing but the windows lies between the two
    y_BhwO = outputs(swin, "layers.0.blocks.1.drop_path1", images())
    by_hand = (y_BhwO @ swin.clusters(swin.sites[2])).movedim(-1, 1)
    torch.testing.assert_close(torch.from_numpy(maps.maps[:, 0]), by_hand)


def test_maps_of_coarser_stages_are_resampled_to_the_finest_grid(swin: Tuner) -> None:
    every, coarse = cluster_maps(swin, images()), cluster_maps(swin, images(), [2, 3])
    assert every.maps.shape == (2, 8, 4, 8, 8)
    assert coarse.maps.shape == (2, 4, 4, 4, 4)
    assert every.layers == [0, 0, 1, 1, 2, 2, 3, 3]
    assert every.label(4) == "layer 2 attn.proj"
    corner = coarse.maps[..., 0, 0]
    np.testing.assert_array_equal(every.maps[:, 4:, :, 0, 0], corner)
    # four fine patches inside a square of coarse ones: weights 9, 3, 3, 1 sixteenths
    square = coarse.maps[..., :2, :2].reshape(2, 4, 4, 4)
    weighted = square @ (np.array([9, 3, 3, 1], np.float32) / 16)
    np.testing.assert_allclose(every.maps[:, 4:, :, 1, 1], weighted, rtol=1e-4, atol=1e-6)
