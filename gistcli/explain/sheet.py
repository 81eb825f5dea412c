"""Contact sheets: what the pictures of `gist visualize` look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from PIL import Image

from gistcli.explain.canvas import MARGIN, MUTED, Canvas, fitted
from gistcli.explain.clusters import ClusterMaps
from gistcli.explain.colour import Bytes, Floats, heat, overlay, strength
from gistcli.explain.pick import Pick, judge

PANEL, PATCHES = 400, 112
LARGE, SMALL = 260, 150  # sides of the tiles of an overview
CELLS = (112, 300)  # side of a cell in a grid: least, most
GAP = 14
HEADER = 64
SIGNS = {1: "+", -1: "\N{MINUS SIGN}"}


@dataclass(frozen=True, eq=False)
class Subject:
    """One image and its maps.

    Attributes:
        name: its file; title: what the network says of it, or nothing.
        photo: (H, W, 3) uint8, exactly the part of the picture that the network saw.
        maps: (L, M, h, w), raw.
        picks: best first.
    """

    name: str
    title: str
    photo: Bytes
    maps: Floats
    picks: Sequence[Pick]

    def level(self, pick: Pick) -> Floats:
        """Strength (h, w) of a picked map, with its sign."""
        return strength(pick.sign * self.maps[pick.site, pick.cluster])


@dataclass(frozen=True, eq=False)
class Strip:
    """One image on an overview.

    Attributes:
        text: name and title.
        photo: (H, W, 3) uint8.
        panels: strength (h, w) of each map, with what it is of.
    """

    text: str
    photo: Bytes
    panels: Sequence[tuple[Floats, str]]


def picks_sheet(subject: Subject, maps: ClusterMaps) -> Image.Image:
    """The photo, the picked maps laid over it, and under each the bare map patch by patch."""
    photo = fitted(subject.photo, (PANEL, PANEL))
    width = max(photo.width, 260)
    top = MARGIN + HEADER + 26
    below = top + photo.height + GAP
    panels = len(subject.picks) + 1
    canvas = Canvas(2 * MARGIN + panels * (width + GAP) - GAP, below + PATCHES + MARGIN)
    header(canvas, subject.name, subject.title)
    canvas.text(MARGIN, top - 26, "picture", 16, bold=True)
    canvas.picture(MARGIN, top, photo)
    canvas.legend(MARGIN, below, width)
    for line, note in enumerate(
        (
            "each map has its own scale",
            "sign \N{MINUS SIGN}: turned round, so that the centre is strong",
            "score: centre against border, and how clear-cut",
        )
    ):
        canvas.text(MARGIN, below + 46 + 22 * line, note, 13, width=width, colour=MUTED)
    for i, pick in enumerate(subject.picks, start=1):
        x, level = MARGIN + i * (width + GAP), subject.level(pick)
        label = f"{maps.label(pick.site)} · cluster {pick.cluster}"
        canvas.text(x, top - 26, label, 16, bold=True, width=width)
        canvas.picture(x, top, overlay(np.asarray(photo), level))
        bare = fitted(heat(level), (PATCHES, PATCHES))
        canvas.picture(x, below, bare)
        canvas.text(x + bare.width + GAP, below + 2, f"sign {SIGNS[pick.sign]}", 15)
        canvas.text(x + bare.width + GAP, below + 26, f"score {pick.score:.2f}", 15)
    return canvas.image


def grid_sheet(
    subject: Subject, maps: ClusterMaps, sites: Sequence[int], clusters: Sequence[int]
) -> Image.Image:
    """Chosen sites, one a row, by chosen clusters, one a column; picked maps are framed."""
    room = min(1840 // len(clusters), 2600 // len(sites)) - 6
    side = min(max(room, CELLS[0]), CELLS[1])
    photo = fitted(subject.photo, (side, side))
    step_x, step_y = photo.width + 6, photo.height + 6
    first = max(len(maps.label(i)) for i in sites) * 9 + GAP
    corner = fitted(subject.photo, (180, 180))
    left, top = MARGIN + first, 2 * MARGIN + corner.height + 30
    width = max(left + len(clusters) * step_x, 760) + MARGIN
    canvas = Canvas(width, top + len(sites) * step_y + MARGIN)
    canvas.picture(MARGIN, MARGIN, corner)
    beside = MARGIN + corner.width + GAP
    header(canvas, subject.name, subject.title, beside)
    note = "each map on its own scale and turned so that the centre is strong; frames: the picks"
    canvas.text(beside, MARGIN + HEADER + 4, note, 14, width=width - beside - MARGIN, colour=MUTED)
    canvas.legend(beside, MARGIN + HEADER + 32, 240)
    picked = {(p.site, p.cluster) for p in subject.picks}
    small = np.asarray(photo)
    signs, _ = judge(subject.maps)
    for column, cluster in enumerate(clusters):
        centre = left + column * step_x + photo.width / 2
        canvas.text(centre, top - 10, f"cluster {cluster}", 14, anchor="ms")
    for row, site in enumerate(sites):
        y = top + row * step_y
        canvas.text(MARGIN, y + photo.height / 2, maps.label(site), 14, anchor="lm")
        for column, cluster in enumerate(clusters):
            x, sign = left + column * step_x, int(signs[site, cluster])
            level = strength(sign * subject.maps[site, cluster])
            canvas.picture(x, y, overlay(small, level))
            canvas.badge(x, y, SIGNS[sign])
            if (site, cluster) in picked:
                canvas.frame(x, y, photo.width, photo.height)
    return canvas.image


def strip_of(subject: Subject) -> Strip:
    """The photo and its picked maps, by layer (L), cluster (C) and sign."""
    panels = [(subject.level(p), f"L{p.layer} C{p.cluster} {SIGNS[p.sign]}") for p in subject.picks]
    return Strip(f"{subject.name}   {subject.title}".strip(), subject.photo, panels)


def overview_sheet(strips: Sequence[Strip], heading: str, note: str) -> Image.Image:
    """Many images on one page.

    Up to four images stand large below one another, more of them small and two abreast.
    """
    abreast, side = (1, LARGE) if len(strips) <= 4 else (2, SMALL)
    photos = [fitted(s.photo, (side, side)) for s in strips]
    block = (1 + max(len(s.panels) for s in strips)) * (side + 4) + 20
    rows = [range(i, min(i + abreast, len(strips))) for i in range(0, len(strips), abreast)]
    heights = [max(photos[i].height for i in row) + 46 for row in rows]
    top = MARGIN + 66
    canvas = Canvas(2 * MARGIN + abreast * block - 20, top + sum(heights) - 20 + MARGIN)
    canvas.text(MARGIN, MARGIN - 4, heading, 20, bold=True, width=canvas.image.width - 2 * MARGIN)
    canvas.text(MARGIN, MARGIN + 28, note, 13, colour=MUTED)
    for row, y in zip(rows, accumulate(heights, initial=top), strict=False):
        for i in row:
            at = (MARGIN + (i - row.start) * block, y)
            _draw(canvas, at, strips[i], photos[i], side)
    return canvas.image


def _draw(canvas: Canvas, at: tuple[int, int], strip: Strip, photo: Image.Image, side: int) -> None:
    """One image of the overview: a line of text, the photo, its maps."""
    x, y = at
    canvas.text(x, y, strip.text, 13, width=(1 + len(strip.panels)) * (side + 4))
    canvas.picture(x, y + 20, photo)
    for i, (level, badge) in enumerate(strip.panels, start=1):
        left = x + i * (photo.width + 4)
        canvas.picture(left, y + 20, overlay(np.asarray(photo), level))
        canvas.badge(left, y + 20, badge, 11)


def header(canvas: Canvas, name: str, title: str, x: int = MARGIN) -> None:
    """Name and title of an image at the top of its page."""
    room = canvas.image.width - x - MARGIN
    canvas.text(x, MARGIN - 4, name, 22, bold=True, width=room)
    canvas.text(x, MARGIN + 28, title, 17, width=room, colour=MUTED)
