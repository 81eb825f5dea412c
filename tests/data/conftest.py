"""Small pictures and recipes' data sections, made on the spot."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gistcli.data import Preprocess
from gistcli.recipe import DataSection


@pytest.fixture(scope="session")
def options() -> Callable[..., DataSection]:
    """`options(path, **keys)`: the data section of a recipe."""

    def make(path: str | Path, **keys: Any) -> DataSection:
        return DataSection(path=str(path), **keys)

    return make


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """`noise(seed, size)`: a picture unlike any other."""

    def make(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
        values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
        return Image.fromarray(values.astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def class_folders(noise: Callable[..., Image.Image]) -> Callable[..., Path]:
    """`class_folders(root, cat=5, dog=3)`: that many PNGs in folders of those names."""

    def make(root: Path, **classes: int) -> Path:
        for label, count in classes.items():
            (root / label).mkdir(parents=True)
            for i in range(count):
                seed = zlib.crc32(f"{root.name} {label} {i}".encode())
                noise(seed).save(root / label / f"{label}{i}.png")
        return root

    return make


@pytest.fixture(scope="session")
def small() -> Preprocess:
    """Sixteen pixels square."""
    return Preprocess((16, 16), (0.5, 0.5, 0.5), (0.25, 0.5, 0.5), crop_pct=0.9)
