"""Writes contact sheets, overviews and raw maps into a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from gistcli.atomic import atomic_file
from gistcli.explain.clusters import ClusterMaps
from gistcli.explain.colour import Bytes
from gistcli.explain.pick import Pick, choose
from gistcli.explain.sheet import (
    Strip,
    Subject,
    grid_sheet,
    overview_sheet,
    picks_sheet,
    strip_of,
)

PAGE = 24
"""Images on one page of the overview."""
RAW = "maps.npz"
NOTE = "L layer, C cluster, sign; each map has its own scale, from dim to bright"


@dataclass(frozen=True)
class SheetFiles:
    """What was written.

    Attributes:
        sheets: one PNG an image, in the order of the images.
        overview: pages with many images each; empty for a single image.
        maps: the raw maps, see `write_maps`.
        picks: the picked maps of every image, best first.
    """

    sheets: list[Path]
    overview: list[Path]
    maps: Path
    picks: list[list[Pick]]


def write_sheets(
    maps: ClusterMaps,
    images: Sequence[Bytes],
    names: Sequence[str],
    output: Path,
    *,
    layers: Sequence[int] | None = None,
    clusters: Sequence[int] | None = None,
    show_all: bool = False,
    titles: Sequence[str] | None = None,
) -> SheetFiles:
    """Draw one contact sheet an image, and an overview where there are several.

    Without `layers`, `clusters` and `show_all` a sheet shows the three picked maps; with any of
    them it is a grid of the chosen layers (None: all) by the chosen clusters (None: all).

    Args:
        maps: of these images, in this order.
        images: (H, W, 3) uint8, exactly the part of the picture that the network saw.
        names: of the files; the sheet of `a/b.jpg` is `b.png`, the next `b` is `b-2.png`.
        output: folder; made where missing. A file of the same name is replaced when its successor
            is complete.
        titles: what the network says of each image.

    Raises:
        UnknownName: a layer or cluster without maps.
        StorageError: the disk is full or may not be written.
    """
    grid = show_all or layers is not None or clusters is not None
    shown = (maps.sites_of(layers), maps.clusters_of(clusters))
    titles = titles or [""] * len(names)
    picks = choose(maps)
    sheets = sheet_paths(names, output)
    subjects = [
        Subject(*parts) for parts in zip(names, titles, images, maps.maps, picks, strict=True)
    ]
    for subject, path in zip(subjects, sheets, strict=True):
        save_png(grid_sheet(subject, maps, *shown) if grid else picks_sheet(subject, maps), path)
    overview = write_overview([strip_of(s) for s in subjects], NOTE, output)
    write_maps(output / RAW, maps, names, sheets, picks)
    return SheetFiles(sheets, overview, output / RAW, picks)


def write_maps(
    path: Path,
    maps: ClusterMaps,
    names: Sequence[str],
    sheets: Sequence[Path],
    picks: Sequence[Sequence[Pick]],
) -> None:
    """The raw maps as a compressed npz that loads without pickle.

    Arrays: maps (B, L, M, h, w) float32, logits (B, K) float32, layers (L,), sites (L,) names,
    images (B,) names, sheets (B,) file names, and (B, picks) each: pick_site (position on the
    L axis), pick_layer, pick_cluster, pick_sign, pick_score.
    """
    arrays: dict[str, Any] = {
        "maps": maps.maps,
        "logits": maps.logits,
        "layers": np.array(maps.layers, dtype=np.int64),
        "sites": np.array(maps.names, dtype=np.str_),
        "images": np.array(names, dtype=np.str_),
        "sheets": np.array([s.name for s in sheets], dtype=np.str_),
    }
    for field in ("site", "layer", "cluster", "sign", "score"):
        arrays[f"pick_{field}"] = np.array([[getattr(p, field) for p in row] for row in picks])
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def unique_stems(names: Sequence[str]) -> list[str]:
    """File stems for some names: safe, short, and different also where letter case does not count.

    The names of the overview's pages are not given away.
    """
    taken = {_page_stem(n) for n in range(1, -(-len(names) // PAGE) + 1)}
    stems = []
    for name in names:
        stem = re.sub(r"[^\w.+() -]", "_", PurePath(name).stem)[:80].strip(" .") or "image"
        candidate, number = stem, 2
        while candidate.lower() in taken:
            candidate, number = f"{stem}-{number}", number + 1
        taken.add(candidate.lower())
        stems.append(candidate)
    return stems


def sheet_paths(names: Sequence[str], output: Path, suffix: str = "") -> list[Path]:
    """Where the sheets of images with these names go. `suffix` ends the files' stems."""
    return [output / f"{stem}{suffix}.png" for stem in unique_stems(names)]


def overview_paths(images: int, output: Path, suffix: str = "") -> list[Path]:
    """Where the overview of so many images goes; nowhere for a single one."""
    pages = -(-images // PAGE) if images > 1 else 0
    return [output / f"{_page_stem(n)}{suffix}.png" for n in range(1, pages + 1)]


def write_overview(
    strips: Sequence[Strip], note: str, output: Path, suffix: str = ""
) -> list[Path]:
    """Pages of images with their maps, at `overview_paths`."""
    paths = overview_paths(len(strips), output, suffix)
    for number, path in enumerate(paths):
        first = number * PAGE
        page = strips[first : first + PAGE]
        heading = f"{len(strips)} images"
        if len(paths) > 1:
            heading = f"images {first + 1} to {first + len(page)} of {len(strips)}"
        save_png(overview_sheet(page, heading, note), path)
    return paths


def _page_stem(number: int) -> str:
    return "overview" if number == 1 else f"overview-{number}"


def save_png(image: Image.Image, path: Path) -> None:
    """A file that is there whole or not at all."""
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
