"""Sheets and files of where CLS and GIST look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gistcli.errors import StorageError
from gistcli.explain.attention import AttentionMaps
from gistcli.explain.colour import Floats
from gistcli.explain.token_sheet import TokenFiles, write_token_sheets


def noise(slots: list[str], *, images: int = 2, layers: int = 3, heads: int = 2) -> AttentionMaps:
    rng = np.random.default_rng(0)
    shape = (images, len(slots), layers, heads, 7, 9)
    maps = rng.random(shape).astype(np.float32) / 63
    logits = rng.random((2, images, 5)).astype(np.float32)
    read_out = logits[1] if "gist" in slots else None
    return AttentionMaps(maps, slots, list(range(layers)), logits[0], read_out)


def write(maps: AttentionMaps, output: Path, **options: Any) -> TokenFiles:
    count = len(maps.maps)
    photos = [np.full((70, 90, 3), 255, np.uint8)] * count
    names = [f"{folder}/cat.jpg" for folder in "abcdefgh"[:count]]
    said = {"titles": ["a cat"] * count, "captions": ["cat"] * count}
    return write_token_sheets(maps, photos, names, output, **said, **options)


def drawn(path: Path) -> Floats:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture, dtype=np.float32)


def test_sheets_overview_and_raw_maps_are_written(tmp_path: Path) -> None:
    maps = noise(["cls", "gist"])
    files = write(maps, tmp_path / "new")
    assert [p.name for p in files.sheets] == ["cat-tokens.png", "cat-2-tokens.png"]
    assert [p.name for p in files.overview] == ["overview-tokens.png"]
    written = {p.name for p in (tmp_path / "new").iterdir()}
    assert written == {*(p.name for p in (*files.sheets, *files.overview)), "tokens.npz"}
    with np.load(files.maps, allow_pickle=False) as raw:
        np.testing.assert_array_equal(raw["maps"], maps.maps)
        np.testing.assert_array_equal(raw["overlap"], maps.overlap)
        np.testing.assert_array_equal(raw["gist_logits"], maps.gist_logits)
        assert raw["slots"].tolist() == ["cls", "gist"]
        assert raw["layers"].tolist() == [0, 1, 2]
        assert raw["images"].tolist() == ["a/cat.jpg", "b/cat.jpg"]
        assert raw["sheets"].tolist() == ["cat-tokens.png", "cat-2-tokens.png"]


def test_a_single_token_has_neither_overlap_nor_second_read_out(tmp_path: Path) -> None:
    files = write(noise(["cls"], images=1), tmp_path)
    assert files.overview == []
    with np.load(files.maps, allow_pickle=False) as raw:
        assert {"overlap", "gist_logits"}.isdisjoint(raw.files)
    both = write(noise(["cls", "gist"], images=1), tmp_path / "both")
    assert len(drawn(both.sheets[0])) > len(drawn(files.sheets[0]))


def test_every_head_is_drawn_where_asked(tmp_path: Path) -> None:
    maps = noise(["cls", "gist"], images=1, layers=6, heads=3)
    mean, heads = write(maps, tmp_path / "mean"), write(maps, tmp_path / "heads", heads=True)
    assert len(drawn(heads.sheets[0])) > 2 * len(drawn(mean.sheets[0]))


def test_deep_networks_take_several_bands(tmp_path: Path) -> None:
    shallow = drawn(write(noise(["cls", "gist"], images=1, layers=12), tmp_path / "a").sheets[0])
    deep = drawn(write(noise(["cls", "gist"], images=1, layers=24), tmp_path / "b").sheets[0])
    assert deep.shape[1] == shallow.shape[1]
    assert len(deep) > len(shallow) + 2 * 80


def test_a_map_is_bright_where_the_token_looks(tmp_path: Path) -> None:
    maps = noise(["cls"], images=1, layers=1)
    maps.maps[:] = 0
    maps.maps[..., 4:] = 0.01  # the right half
    sheet = drawn(write(maps, tmp_path).sheets[0])
    below = sheet[250:-40].mean(axis=(0, 2))
    left, right = below[90:180].mean(), below[260:340].mean()
    assert right > 1.2 * left


def test_an_output_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StorageError, match="cannot be written"):
        write(noise(["cls"], images=1), tmp_path / "out")
