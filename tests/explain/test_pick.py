"""The picker: signs, scores, and its choice on drawn and on real pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gistcli.backbones import open_backbone
from gistcli.explain.clusters import ClusterMaps, cluster_maps
from gistcli.explain.pick import (
    choose,
    contrast,
    judge,
    middle_layers,
    separability,
    standardise,
)
from gistcli.methods.gift import Gift

GRIDS = [(14, 14), (14, 21), (8, 8), (37, 20)]


def blob(height: int, width: int) -> np.ndarray:
    """1 in the middle, falling to 0 at the border."""
    y, x = np.mgrid[:height, :width]
    distance = ((y / (height - 1) - 0.5) / 0.3) ** 2 + ((x / (width - 1) - 0.5) / 0.3) ** 2
    return np.exp(-distance).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_sign_turns_a_centred_blob_so_that_it_is_strong(grid: tuple[int, int]) -> None:
    maps = np.stack([5 + blob(*grid), 5 - blob(*grid)])
    sign, score = judge(maps)
    assert sign.tolist() == [1, -1]
    assert score[0] == pytest.approx(score[1], rel=1e-4)
    assert score[0] > 0.5


def test_contrast_is_the_inner_6_by_8_patches_minus_the_ring() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, 14, 14)).astype(np.float32)
    ring = np.concatenate(
        [noise[:, 0], noise[:, -1], noise[:, 1:-1, 0], noise[:, 1:-1, -1]], axis=1
    )
    by_hand = noise[:, 4:10, 3:11].mean((1, 2)) - ring.mean(1)
    np.testing.assert_allclose(contrast(noise), by_hand, rtol=1e-5)


def test_separability_is_one_for_two_levels_and_three_quarters_for_a_ramp() -> None:
    halves = np.zeros((10, 10), np.float32)
    halves[:, :3] = 2.5
    ramp = np.arange(10000, dtype=np.float32).reshape(100, 100)
    assert separability(halves) == pytest.approx(1.0, abs=1e-5)
    assert separability(ramp) == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 7.3, -1e-30, 1e30])
@pytest.mark.parametrize("grid", [(14, 14), (1, 1), (2, 2), (1, 5)])
def test_a_constant_map_has_score_zero_and_no_nan(value: float, grid: tuple[int, int]) -> None:
    maps = np.full((2, *grid), value, dtype=np.float32)
    np.testing.assert_array_equal(standardise(maps), 0)
    sign, score = judge(maps)
    assert sign.tolist() == [1, 1]
    assert score.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, range(3, 9)), (24, range(6, 18)), (4, range(1, 3)), (1, range(1))]
)
def test_the_middle_half_of_the_layers_is_looked_at(depth: int, layers: range) -> None:
    assert list(middle_layers(depth)) == list(layers)


def test_the_clearest_blobs_of_the_middle_layers_are_picked_best_first(
    make_maps: Callable[..., ClusterMaps],
) -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 12, 4, 14, 14)).astype(np.float32)
    maps[0, 11, 0] = blob(14, 14)  # clearest of all, but in the last layer
    maps[0, 5, 2] -= 8 * blob(14, 14)
    maps[0, 3, 1] += 100 * blob(14, 14)
    picks = choose(make_maps(maps))
    assert [(p.layer, p.cluster, p.sign) for p in picks[0][:2]] == [(3, 1, 1), (5, 2, -1)]
    assert [len(p) for p in picks] == [3, 3]
    for row in picks:
        assert [p.score for p in row] == sorted((p.score for p in row), reverse=True)


def test_picks_point_at_their_map_where_only_some_layers_have_one(
    make_maps: Callable[..., ClusterMaps],
) -> None:
    maps = np.random.default_rng(0).normal(size=(1, 3, 2, 14, 14)).astype(np.float32)
    maps[0, 1, 1] = -blob(14, 14)
    best = choose(make_maps(maps, layers=[1, 7, 7]))[0][0]
    assert (best.site, best.layer, best.cluster, best.sign) == (1, 7, 1, -1)


def test_all_layers_are_looked_at_where_no_middle_one_is_tuned(
    make_maps: Callable[..., ClusterMaps],
) -> None:
    picks = choose(make_maps(shape=(1, 2, 2, 14, 14), layers=[0, 11]), count=9)
    assert {p.layer for p in picks[0]} == {0, 11}
    assert len(picks[0]) == 4


def test_picks_on_real_photos_set_the_animal_against_the_water(assets: Path) -> None:
    """Also with a phi that was never trained: the maps show what the pretrained tokens hold."""
    torch.manual_seed(0)
    tuner = Gift().attach(open_backbone(str(assets / "vit_tiny_patch16_224")))
    files = sorted((assets / "caltech20" / "test" / "dolphin").glob("*.jpg"))[:4]
    photos = [Image.open(f).convert("RGB").resize((224, 224)) for f in files]
    pixels = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in photos])
    maps = cluster_maps(tuner, pixels.float() / 127.5 - 1)
    for row, raw in zip(choose(maps), maps.maps, strict=True):
        for pick in row:
            assert pick.score > 0.3
            assert pick.layer in range(3, 9)
            assert contrast(pick.sign * raw[pick.site, pick.cluster]) > 0
