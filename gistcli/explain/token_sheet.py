"""Draws where CLS and GIST look, one sheet an image, and writes maps and figures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from gistcli.atomic import atomic_file
from gistcli.explain.attention import LABELS, AttentionMaps
from gistcli.explain.canvas import MARGIN, MUTED, Canvas, fitted
from gistcli.explain.colour import Bytes, Floats, overlay, strength
from gistcli.explain.heatmap import save_png, sheet_paths, write_overview
from gistcli.explain.sheet import CELLS, GAP, HEADER, Strip, header

ABREAST = 12
"""Blocks side by side; deeper networks take several bands."""
SUFFIX = "-tokens"
"""Of the sheets' stems, so that cluster maps of the same images can lie in the same folder."""
RAW = "tokens.npz"
CORNER, UNDER = 180, 30
NOTE = "attention from the named token to the patches, mean over the heads; own scale each"
OF_HEADS = "attention from the named token to the patches, mean and every head; own scale each"
SHARED = "below: overlap of the maps above it, 1 where they are equal"


@dataclass(frozen=True)
class TokenFiles:
    """What was written: a sheet an image, pages with many images, the raw maps."""

    sheets: list[Path]
    overview: list[Path]
    maps: Path


@dataclass(frozen=True, eq=False)
class Row:
    """Maps side by side: a name, the maps (h, w), what stands above each, and below the last."""

    name: str
    maps: Sequence[Floats]
    above: Sequence[str] = ()
    below: Sequence[str] = ()


def write_token_sheets(
    maps: AttentionMaps,
    images: Sequence[Bytes],
    names: Sequence[str],
    output: Path,
    *,
    titles: Sequence[str],
    captions: Sequence[str],
    heads: bool = False,
) -> TokenFiles:
    """Draw one sheet an image, and an overview where there are several.

    Args:
        maps: of these images, in this order.
        images: (H, W, 3) uint8, exactly the part of the picture that the network saw.
        names: of the files; the sheet of `a/b.jpg` is `b-tokens.png`.
        output: folder; made where missing.
        titles: what the network says of each image; captions: the same in a few words, for the
            overview.
        heads: draw every head beside the mean.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    sheets = sheet_paths(names, output, SUFFIX)
    strips = []
    for i, (photo, name, title, path) in enumerate(zip(images, names, titles, sheets, strict=True)):
        rows = _rows_of_heads(maps, i) if heads else _rows_of_blocks(maps, i)
        save_png(tokens_sheet(photo, name, title, rows, OF_HEADS if heads else NOTE), path)
        last = [
            (strength(maps.mean[i, s, -1]), f"{LABELS[slot]} L{maps.layers[-1]}")
            for s, slot in enumerate(maps.slots)
        ]
        strips.append(Strip(f"{PurePath(name).name}   {captions[i]}", photo, last))
    overview = write_overview(strips, f"L layer; {NOTE}", output, SUFFIX)
    _write_maps(output / RAW, maps, names, sheets)
    return TokenFiles(sheets, overview, output / RAW)


def _rows_of_blocks(maps: AttentionMaps, image: int) -> list[Row]:
    """A row a token, a column a block; in bands of ABREAST blocks."""
    rows: list[Row] = []
    for start in range(0, len(maps.layers), ABREAST):
        band = slice(start, start + ABREAST)
        above = [f"layer {layer}" for layer in maps.layers[band]]
        for s, slot in enumerate(maps.slots):
            rows.append(Row(LABELS[slot], list(maps.mean[image, s, band]), () if s else above))
        if maps.overlap is not None:
            below = [f"{value:.2f}" for value in maps.overlap[image, band]]
            rows[-1] = Row(rows[-1].name, rows[-1].maps, (), below)
    return rows


def _rows_of_heads(maps: AttentionMaps, image: int) -> list[Row]:
    """A row a token and block; columns are the mean and every head."""
    rows: list[Row] = []
    above = ["mean", *(f"head {head}" for head in range(maps.maps.shape[3]))]
    for number, layer in enumerate(maps.layers):
        for s, slot in enumerate(maps.slots):
            drawn = [maps.mean[image, s, number], *maps.maps[image, s, number]]
            rows.append(Row(f"layer {layer} {LABELS[slot]}", drawn, () if rows else above))
    return rows


def tokens_sheet(
    photo: Bytes, name: str, title: str, rows: Sequence[Row], note: str
) -> Image.Image:
    """The photo with its name, and rows of maps laid over it."""
    columns = max(len(row.maps) for row in rows)
    room = min(1840 // columns, 2600 // len(rows)) - 6
    side = min(max(room, CELLS[0]), CELLS[1])
    small, corner = fitted(photo, (side, side)), fitted(photo, (CORNER, CORNER))
    left = MARGIN + max(len(row.name) for row in rows) * 9 + GAP
    top = 2 * MARGIN + max(corner.height, HEADER + 100)
    heights = [_extra(row.above) + small.height + 6 + _extra(row.below) for row in rows]
    width = max(left + columns * (small.width + 6), 1000) + MARGIN
    canvas = Canvas(width, top + sum(heights) + MARGIN)
    canvas.picture(MARGIN, MARGIN, corner)
    beside = MARGIN + corner.width + GAP
    header(canvas, name, title, beside)
    notes = [note, SHARED] if any(row.below for row in rows) else [note]
    for line, text in enumerate(notes):
        y = MARGIN + HEADER + 4 + 20 * line
        canvas.text(beside, y, text, 14, width=width - beside - MARGIN, colour=MUTED)
    canvas.legend(beside, MARGIN + HEADER + 52, 240)
    for row, height in zip(rows, heights, strict=True):
        _draw_row(canvas, (left, top), row, small)
        top += height
    return canvas.image


def _extra(texts: Sequence[str]) -> int:
    """Height of a line of text above or below a row."""
    return UNDER if texts else 0


def _draw_row(canvas: Canvas, at: tuple[int, int], row: Row, photo: Image.Image) -> None:
    left, y = at[0], at[1] + _extra(row.above)
    canvas.text(MARGIN, y + photo.height / 2, row.name, 14, anchor="lm")
    for column, map_hw in enumerate(row.maps):
        x = left + column * (photo.width + 6)
        canvas.picture(x, y, overlay(np.asarray(photo), strength(map_hw)))
        centre = x + photo.width / 2
        for text, line in ((row.above, y - 10), (row.below, y + photo.height + 22)):
            if text:
                canvas.text(centre, line, text[column], 14, anchor="ms")


def _write_maps(
    path: Path, maps: AttentionMaps, names: Sequence[str], sheets: Sequence[Path]
) -> None:
    """The raw maps as a compressed npz that loads without pickle.

    Arrays: maps (B, S, L, H, h, w) float32, slots (S,), layers (L,), logits (B, K) float32, images
    (B,) names, sheets (B,) file names; where there are two slots also gist_logits (B, K) and
    overlap (B, L).
    """
    arrays: dict[str, Any] = {
        "maps": maps.maps,
        "slots": np.array(maps.slots, dtype=np.str_),
        "layers": np.array(maps.layers, dtype=np.int64),
        "logits": maps.logits,
        "images": np.array(names, dtype=np.str_),
        "sheets": np.array([s.name for s in sheets], dtype=np.str_),
    }
    more = {"gist_logits": maps.gist_logits, "overlap": maps.overlap}
    arrays |= {key: value for key, value in more.items() if value is not None}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
