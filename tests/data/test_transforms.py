"""Evaluation pixels equal those of timm's own transform, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from gistcli.data import Preprocess, load_images, load_split, open_catalog
from gistcli.data.transforms import canvas, draft_size
from gistcli.recipe import DataSection

CONFIGS = {
    "center": {"crop_mode": "center", "crop_pct": 0.9, "interpolation": "bicubic"},
    "squash": {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"},
    "border": {"crop_mode": "border", "crop_pct": 0.95, "interpolation": "bicubic"},
    "lanczos": {"crop_mode": "center", "crop_pct": 0.875, "interpolation": "lanczos"},
    "wide": {"crop_mode": "center", "crop_pct": 0.9, "input_size": (3, 96, 160)},
    "small": {"crop_mode": "center", "crop_pct": 1.0, "input_size": (3, 32, 32)},
}


def full(name: str) -> dict:
    base = {
        "input_size": (3, 112, 112),
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    return {**base, **CONFIGS[name]}


@pytest.fixture(scope="module")
def photos(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real photos: colour and grey JPEGs as they are, and others stored in further ways."""
    folder = tmp_path_factory.mktemp("photos") / "train"
    taken = sorted((assets / "caltech20/test").glob("*/image_000*.jpg"))[:12]
    forms = ["keep.jpg", "x.png", "grey.png", "palette.png", "cmyk.tif", "keep.jpg"]
    modes = [None, "RGB", "L", "P", "CMYK", None]
    paths = []
    for i, photo in enumerate(taken):
        form, mode = forms[i % 6], modes[i % 6]
        path = folder / ("a" if i % 2 else "b") / f"{i:02d}.{form}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode is None:
            path.write_bytes(photo.read_bytes())
        else:
            with Image.open(photo) as image:
                image.convert("RGB").convert(mode).save(path)
        paths.append(path)
    return paths


def reference(paths: list[Path], config: dict) -> torch.Tensor:
    transform = create_transform(**config, is_training=False)
    pixels = []
    for path in paths:
        with Image.open(path) as image:
            pixels.append(transform(image.convert("RGB")))
    return torch.stack(pixels)


@pytest.mark.parametrize("name", CONFIGS)
def test_evaluation_pixels_equal_timm(name: str, photos: list[Path]) -> None:
    config = full(name)
    pixels, shown = load_images(photos, Preprocess.from_config(config), display=0)
    assert torch.equal(pixels, reference(photos, config))
    assert shown == []


@pytest.mark.parametrize("budget", [None, 0], ids=["resident", "streamed"])
def test_a_split_for_evaluation_equals_timm(
    budget: int | None, photos: list[Path], options: Callable[..., DataSection]
) -> None:
    config = full("center")
    catalog = open_catalog(options(photos[0].parents[1]), base=Path(), whole=True)
    split = load_split(
        catalog, "test", Preprocess.from_config(config), train=False, budget_bytes=budget
    )
    pixels = torch.cat([b["pixels"] for b in split.batches(5, seed=None)])
    ordered = sorted(photos)
    assert [Path(n).name for n in split.names] == [p.name for p in ordered]
    assert torch.equal(pixels, reference(ordered, config))


def test_training_pixels_without_augmentation_are_those_of_the_evaluation(
    photos: list[Path], options: Callable[..., DataSection]
) -> None:
    catalog = open_catalog(options(photos[0].parents[1]), base=Path(), whole=True)
    preprocess = Preprocess.from_config(full("center"))
    both = [load_split(catalog, "test", preprocess, train=train) for train in (True, False)]
    batches = [next(split.batches(12, seed=None))["pixels"] for split in both]
    assert torch.equal(*batches)  # no photo is large enough to be decoded smaller


def test_a_large_jpeg_for_training_stays_close_to_its_evaluation_pixels(
    assets: Path, tmp_path: Path, options: Callable[..., DataSection]
) -> None:
    photo = next((assets / "caltech20/test/dolphin").glob("*.jpg"))
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        with Image.open(photo) as image:
            large = image.convert("RGB").resize((2400, 1600), Image.Resampling.BICUBIC)
            large.save(tmp_path / label / "large.jpg", quality=90)
    catalog = open_catalog(options(tmp_path), base=Path(), whole=True)
    preprocess = Preprocess.from_config(full("center"))
    train, exact = (
        next(load_split(catalog, "test", preprocess, train=t).batches(2, seed=None))["pixels"]
        for t in (True, False)
    )
    assert not torch.equal(train, exact)  # it was decoded smaller
    assert (train - exact).abs().mean() < 0.02


def test_one_channel_models_read_grey(photos: list[Path]) -> None:
    config = {**full("small"), "input_size": (1, 32, 32), "mean": (0.4,), "std": (0.2,)}
    preprocess = Preprocess.from_config(config)
    pixels, shown = load_images(photos[:2], preprocess, display=64)
    with Image.open(photos[0]) as image:
        expected = create_transform(**config)(image.convert("RGB").convert("L"))
    assert torch.equal(pixels[0], expected)
    assert [s.shape for s in shown] == [(64, 64, 3)] * 2


def test_what_is_shown_is_the_crop_that_the_model_sees(photos: list[Path]) -> None:
    config = full("wide")
    preprocess = Preprocess.from_config(config)
    pixels, shown = load_images(photos[:3], preprocess, display=150)
    assert [s.shape for s in shown] == [(192, 320, 3)] * 3
    mean, std = (np.array(config[k]) for k in ("mean", "std"))

    def coarse(picture: np.ndarray) -> np.ndarray:
        """Averages of a grid of 24 by 40, which a shift of half a pixel hardly changes."""
        return picture.reshape(24, len(picture) // 24, 40, -1, 3).mean((1, 3))

    for seen, picture in zip(pixels, shown, strict=True):
        model = coarse(seen.permute(1, 2, 0).numpy() * std + mean)
        view = coarse(picture / 255)
        shifted = np.abs(np.roll(view, 1, axis=0) - model).mean()
        assert np.abs(view - model).mean() < shifted / 3


def test_the_configuration_survives_json() -> None:
    preprocess = Preprocess.from_config(full("wide"))
    assert Preprocess.from_config(preprocess.to_config()) == preprocess
    one = Preprocess.from_config({**full("small"), "input_size": (1, 32, 32), "mean": [0.2, 0.4]})
    assert one.channels == 1
    assert one.mean == pytest.approx((0.3,))


def test_the_canvas_of_224_is_256_and_keeps_shape() -> None:
    preprocess = Preprocess((224, 448), (0.5,) * 3, (0.5,) * 3, crop_pct=0.9)
    assert canvas(preprocess).size == (256, 512)
    assert canvas(preprocess).crop_pct == 1.0
    assert draft_size(preprocess) == 2 * int(448 / 0.9)
