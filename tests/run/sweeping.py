"""What tests of sweeps share: a recipe that takes a second a run, and how results are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gistcli.run.sweep_request import SweepRequest
from tests.forked import Forked, gist

NANO = """\
model: {name: gist_vit_nano}
data: {path: ./pictures}
method: {name: gift, rank: 2}
train: {max_steps: 2, batch_size: 10}
eval: {every: none}
"""
SEARCH: dict[str, Any] = {
    "methods": ["gift", "linear"],
    "seeds": [0, 1],
    "grid": ["optim.head_lr=x1,x4"],
    "refit": True,
}
"""4 candidates and 4 final runs."""
SEARCH_FLAGS = ("--methods", "gift,linear", "--seeds", "0,1", "--grid", "optim.head_lr=x1,x4",
                "--refit")  # fmt: skip


def write(folder: Path, text: str = NANO, name: str = "nano.yaml") -> Path:
    """A recipe file, and beside it the pictures that it is of."""
    path = folder / name
    path.write_text(text)
    draw(folder / "pictures")
    return path


def copy(recipe: Path, folder: Path, old: str = "", new: str = "") -> Path:
    """The same recipe of the same pictures in another folder, with a part of it replaced."""
    text = NANO.replace("./pictures", f"{recipe.parent}/pictures").replace(old or "\0", new)
    path = folder / recipe.name
    path.write_text(f"{text}# a copy\n")
    return path


def draw(folder: Path) -> None:
    """Noise in two classes, a little brighter in one: 20 to train, 10 each for val and test."""
    if folder.exists():
        return
    random = np.random.default_rng(0)
    for split, count in {"train": 20, "val": 10, "test": 10}.items():
        for i in range(count):
            place = folder / split / ("dark", "light")[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 200 + 50 * (i % 2), (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")


def search(recipe: Path, **changes: Any) -> SweepRequest:
    """The request of `SEARCH_FLAGS`."""
    return SweepRequest([recipe], **{**SEARCH, **changes})


def start(recipe: Path, output: Path, *more: str) -> Forked:
    """The same as another process."""
    return gist("sweep", recipe, *SEARCH_FLAGS, "-o", output, *more)


def state(folder: Path) -> dict[Path, int]:
    """When each file was written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def results(folder: Path) -> dict[str, bytes]:
    """The result files, by run."""
    return {p.parent.name: p.read_bytes() for p in folder.glob("runs/*/result.json")}


def table(found: dict[str, Any]) -> dict[str, Any]:
    """What is the same whoever did the runs: figures and choices, not seconds."""
    return {
        "chosen": found["chosen"],
        "results": {r["id"]: r["metrics"] for r in found["results"]},
    }
