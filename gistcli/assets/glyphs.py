"""Rendered glyphs: letters and symbols in the faces that matplotlib ships, distorted at random.

The alphabet holds Latin, Greek and Cyrillic letters and symbols that differ in shape, and no
digit in any form: neither 0-9 nor what Unicode counts as a digit or a number (superscripts,
fractions, circled figures). Letters that merely resemble one (O, S, the Cyrillic Ze) stay.

Everything random comes from the caller's generator; the same seed gives the same pixels on the
same machine (another FreeType may draw outlines slightly differently).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

# lower-case letters that are small copies of their capitals are left out, and so are the Greek
# and Cyrillic letters that look like a Latin one
GLYPHS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abdefghijmnqrtuy"
    "ÆæŒœßþðŁ"
    "ΓΔΘΛΞΠΣΦΨΩ"
    "αβγδεζηθλμξπσφψω"
    "БДЖЗИЛЦЧШЩЪЫЭЮЯЂЉЊЄЏ"
    "!?&@#$%*+=<>/\\~^{}[]()§¶©£€¥¢∞∂∫√≈≠≤≥←→↑↓±÷«†‡∀∃∇∈⊂⊗∝¿"
)

# a face without a glyph borrows it from the second name
FACES: dict[str, str | None] = {
    **{
        f"DejaVu{family}{cut}": None
        for family, cuts in {
            "Sans": ("", "-Bold", "-Oblique", "-BoldOblique"),
            "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
            "Serif": ("", "-Bold", "-Italic", "-BoldItalic"),
        }.items()
        for cut in cuts
    },
    "STIXGeneral": None,
    "STIXGeneralBol": None,
    "STIXGeneralItalic": "STIXGeneral",
    "STIXGeneralBolIta": "STIXGeneralBol",
}

CANVAS = 48
"""Pixels along a side of the atlas; the longer side of a glyph fills three quarters of it."""

SIZE = 32
"""Pixels along a side of a rendered image."""


class Glyphs(NamedTuple):
    """Images (N, 1, 32, 32) in 0..1 and the indices (N,) of their glyphs in `GLYPHS`."""

    images: Tensor
    labels: Tensor


def atlas() -> Tensor:
    """Every glyph in every face, (150, 16, 48, 48), white (1) on black (0), centred."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [_draw_face(folder, face, spare) for face, spare in FACES.items()]
    return torch.stack(faces, dim=1)


def _draw_face(folder: Path, face: str, spare: str | None) -> Tensor:
    """All glyphs of one face, (150, 48, 48)."""
    path = folder / f"{face}.ttf"
    known = FT2Font(str(path)).get_charmap()
    drawn = []
    for glyph in GLYPHS:
        if ord(glyph) in known:
            source = path
        elif spare is not None:
            source = folder / f"{spare}.ttf"
        else:
            raise ValueError(f"{face} has no {glyph!r}")
        drawn.append(_draw(source, glyph))
    return torch.from_numpy(np.stack(drawn)).float() / 255


def _draw(path: Path, glyph: str) -> np.ndarray:
    """One glyph, scaled so that its longer side fills three quarters of the canvas."""
    font = ImageFont.truetype(str(path), 96, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = (int(v) for v in font.getbbox(glyph))
    width, height = right - left, bottom - top
    ink = Image.new("L", (width, height))
    ImageDraw.Draw(ink).text((-left, -top), glyph, fill=255, font=font)
    scale = 0.75 * CANVAS / max(width, height)
    ink = ink.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
    )
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return np.asarray(canvas)


def render(atlas: Tensor, n: int, generator: Generator) -> Glyphs:
    """`n` glyphs in random faces with random stroke, pose, bend, blur, contrast and noise."""
    labels = torch.randint(atlas.shape[0], (n,), generator=generator)
    faces = torch.randint(atlas.shape[1], (n,), generator=generator)
    images = _stroke(atlas[labels, faces].unsqueeze(1), generator)
    images = F.grid_sample(images, _pose(n, generator), align_corners=False)
    images = _tone(_blur(images, generator), generator)
    return Glyphs(images, labels)


def _uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _stroke(images: Tensor, generator: Generator) -> Tensor:
    """Thickens three in ten glyphs by a pixel of the canvas on either side, thins one in ten."""
    chance = torch.rand(len(images), 1, 1, 1, generator=generator)
    thick = F.max_pool2d(images, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-images, 3, stride=1, padding=1)
    return torch.where(chance < 0.3, thick, torch.where(chance > 0.9, thin, images))


def _pose(n: int, generator: Generator) -> Tensor:
    """Sampling grids (n, 32, 32, 2): rotation, shear, both scales, a shift and a smooth bend."""
    turn = _uniform(n, -0.35, 0.35, generator)
    shear = _uniform(n, -0.35, 0.35, generator)
    wide, high = (_uniform(n, 0.7, 1.2, generator) for _ in range(2))
    across, down = (_uniform(n, -0.15, 0.15, generator) for _ in range(2))
    cos, sin = turn.cos(), turn.sin()
    rows = [
        torch.stack([wide * cos, wide * (shear * cos - sin), across], dim=1),
        torch.stack([high * sin, high * (shear * sin + cos), down], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [n, 1, SIZE, SIZE], align_corners=False)
    knots = torch.randn(n, 2, 4, 4, generator=generator) * 0.07
    bend = F.interpolate(knots, size=(SIZE, SIZE), mode="bicubic", align_corners=True)
    return grid + bend.permute(0, 2, 3, 1)


def _blur(images: Tensor, generator: Generator) -> Tensor:
    """A quarter stays sharp; each other image gets a Gaussian blur of 0.3 to 1.2 pixels."""
    n = len(images)
    sigma = _uniform(n, 0.3, 1.2, generator)
    taps = torch.exp(-0.5 * (torch.arange(-2, 3.0) / sigma[:, None]) ** 2)
    taps = taps / taps.sum(dim=1, keepdim=True)
    blurred = images.transpose(0, 1)  # the batch as channels, so that each has its own taps
    blurred = F.conv2d(blurred, taps.view(n, 1, 5, 1), padding=(2, 0), groups=n)
    blurred = F.conv2d(blurred, taps.view(n, 1, 1, 5), padding=(0, 2), groups=n).transpose(0, 1)
    sharp = torch.rand(n, 1, 1, 1, generator=generator) < 0.25
    return torch.where(sharp, images, blurred)


def _tone(images: Tensor, generator: Generator) -> Tensor:
    """Random ink and paper, noise up to 0.07, and every second image inverted."""
    n = len(images)
    ink = _uniform(n, 0.6, 1.0, generator).view(n, 1, 1, 1)
    paper = _uniform(n, 0.0, 0.2, generator).view(n, 1, 1, 1)
    level = _uniform(n, 0.0, 0.07, generator).view(n, 1, 1, 1)
    images = paper + (ink - paper) * images
    images = images + level * torch.randn(images.shape, generator=generator)
    inverted = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    return torch.where(inverted, 1 - images, images).clamp(0, 1)
