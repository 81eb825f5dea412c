"""Colours, sheets and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gistcli.errors import StorageError, UnknownName
from gistcli.explain.canvas import font, shorten
from gistcli.explain.clusters import ClusterMaps
from gistcli.explain.colour import heat, overlay, strength, upsampled
from gistcli.explain.heatmap import PAGE, unique_stems, write_sheets


def photos(count: int, height: int = 60, width: int = 80) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def brightness(picture: np.ndarray) -> np.ndarray:
    return picture.astype(float) @ [0.2126, 0.7152, 0.0722]


def test_strength_runs_from_0_to_1_and_outliers_do_not_set_the_scale() -> None:
    ramp = np.arange(100, dtype=np.float32).reshape(10, 10)
    ramp[0, 0] = -1e6
    level = strength(ramp)
    assert level.min() == 0
    assert level.max() == 1
    assert level[5, 0] == pytest.approx(0.5, abs=0.05)


def test_colours_grow_lighter_with_strength() -> None:
    light = brightness(heat(np.linspace(0, 1, 64, dtype=np.float32)))
    assert (np.diff(light) > 0).all()


def test_upsampling_is_bilinear_with_pixel_centres_aligned() -> None:
    level = np.array([[0, 1]], dtype=np.float32)
    expected = [[0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]]
    np.testing.assert_allclose(upsampled(level, (8, 1))[:, [0, 1, 2, 3, 4, 5, 6, 7]], expected)


def test_the_overlay_is_dim_where_the_map_is_weak_and_bright_where_it_is_strong() -> None:
    photo = np.full((40, 60, 3), 128, dtype=np.uint8)
    level = np.zeros((4, 6), dtype=np.float32)
    level[:, 3:] = 1
    light = brightness(overlay(photo, level))
    assert light[:, :25].max() < 70
    assert light[:, 35:].min() > 128


def test_a_constant_map_leaves_the_dimmed_photo() -> None:
    photo = photos(1)[0]
    flat = overlay(photo, strength(np.full((4, 4), 3.3, dtype=np.float32)))
    np.testing.assert_array_equal(flat, overlay(photo, np.zeros((4, 4), dtype=np.float32)))


def test_long_names_keep_their_two_ends() -> None:
    short = shorten("a_very_long_name_of_a_photo_0042.jpg", 120, 15)
    assert short.startswith("a_v")
    assert short.endswith(".jpg")
    assert font(15).getlength(short) <= 120


def test_names_that_clash_get_numbers() -> None:
    names = ["a/dog.jpg", "b/dog.png", "DOG.tif", "x:y.jpg", ".jpg", "overview.jpg", "ü.gif"]
    assert unique_stems(names) == ["dog", "dog-2", "DOG-3", "x_y", "jpg", "overview-2", "ü"]


def test_sheets_overview_and_raw_maps_are_written(
    make_maps: Callable[..., ClusterMaps], tmp_path: Path
) -> None:
    maps = make_maps(shape=(2, 12, 4, 7, 9))
    names = ["a/cat.jpg", "b/cat.jpg"]
    files = write_sheets(maps, photos(2), names, tmp_path / "new" / "maps", titles=["cat", "dog"])
    assert [p.name for p in files.sheets] == ["cat.png", "cat-2.png"]
    assert [p.name for p in files.overview] == ["overview.png"]
    written = {p.name for p in (tmp_path / "new" / "maps").iterdir()}
    assert written == {"cat.png", "cat-2.png", "overview.png", "maps.npz"}
    for path in [*files.sheets, *files.overview]:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 800
    with np.load(files.maps, allow_pickle=False) as raw:
        np.testing.assert_array_equal(raw["maps"], maps.maps)
        assert raw["images"].tolist() == names
        assert raw["sheets"].tolist() == ["cat.png", "cat-2.png"]
        assert raw["layers"].tolist() == list(range(12))
        assert raw["sites"].tolist() == maps.names
        assert raw["pick_cluster"].tolist() == [[p.cluster for p in row] for row in files.picks]
        signed = raw["pick_sign"][0, 0] * raw["maps"][0, raw["pick_site"][0, 0]]
        assert signed.shape == (4, 7, 9)


def test_the_default_sheet_shows_photo_and_picks_and_others_a_grid(
    make_maps: Callable[..., ClusterMaps], tmp_path: Path
) -> None:
    maps = make_maps(shape=(1, 12, 4, 14, 14))
    photo = [np.full((448, 448, 3), 255, dtype=np.uint8)]

    def draw(name: str, **options: Any) -> np.ndarray:
        files = write_sheets(maps, photo, ["x.jpg"], tmp_path / name, **options)
        assert files.overview == []
        with Image.open(files.sheets[0]) as picture:
            return np.asarray(picture)

    picks, chosen = draw("picks"), draw("chosen", layers=[4, 5, -1], clusters=[0, 3])
    every = draw("every", show_all=True)
    assert picks.shape[1] > 4 * 400
    assert (picks[200, 30:420] == 255).all()  # the photo, not covered
    assert not (picks[200, 450:] == 255).all(axis=-1).any()
    assert every.shape[0] > 12 * 112
    assert chosen.shape[0] < every.shape[0]
    only_layers = draw("layers", layers=[4])
    assert only_layers.shape[1] > chosen.shape[1]  # all four clusters


def test_flat_maps_on_tiny_grids_are_drawn(
    make_maps: Callable[..., ClusterMaps], tmp_path: Path
) -> None:
    maps = make_maps(np.zeros((1, 2, 1, 2, 2), dtype=np.float32), depth=2)
    files = write_sheets(maps, photos(1, 8, 8), ["digit"], tmp_path)
    assert files.sheets[0].is_file()
    assert [p.score for p in files.picks[0]] == [0, 0]


def test_many_images_fill_several_overview_pages(
    make_maps: Callable[..., ClusterMaps], tmp_path: Path
) -> None:
    count = PAGE + 1
    maps = make_maps(shape=(count, 4, 2, 4, 4), depth=4)
    names = [f"overview-{i}.jpg" for i in range(count)]
    files = write_sheets(maps, photos(count, 32, 32), names, tmp_path, layers=[0], clusters=[0])
    assert [p.name for p in files.overview] == ["overview.png", "overview-2.png"]
    assert len({*files.sheets, *files.overview}) == count + 2


def test_unknown_numbers_are_refused_before_anything_is_written(
    make_maps: Callable[..., ClusterMaps], tmp_path: Path
) -> None:
    maps = make_maps(shape=(1, 12, 4, 14, 14))
    for options in ({"layers": [12]}, {"clusters": [4]}, {"layers": [0], "clusters": [-1]}):
        with pytest.raises(UnknownName, match="no map"):
            write_sheets(maps, photos(1), ["x"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_a_clear_error(
    make_maps: Callable[..., ClusterMaps], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StorageError, match="cannot be written"):
        write_sheets(make_maps(shape=(1, 2, 2, 4, 4)), photos(1), ["x"], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
