"""A dark page to put pictures and words on, in pixels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gistcli.explain.colour import Bytes, heat

PAPER, INK, MUTED, FRAME = "#14161b", "#f0f0f2", "#a0a6b0", "#ffffff"
MARGIN = 24


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def shorten(text: str, width: float, size: int, bold: bool = False) -> str:
    """The text, or its two ends around an ellipsis where it is wider than `width` pixels."""
    face = font(size, bold)
    if face.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
        if face.getlength(short) <= width:
            return short
    return "…"


def fitted(photo: Bytes, box: tuple[int, int]) -> Image.Image:
    """The photo (H, W, 3) as large as it goes into `box` = (width, height), undistorted."""
    height, width = photo.shape[:2]
    scale = min(box[0] / width, box[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # the pixels of a tiny picture stay visible as squares
    how = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.LANCZOS
    return Image.fromarray(photo).resize(size, how)


class Canvas:
    """A page of `width` x `height` pixels; all positions are from its top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 15,
        *,
        width: float | None = None,
        bold: bool = False,
        colour: str = INK,
        anchor: str = "la",
    ) -> None:
        """One line; `anchor` as in Pillow (la: left, top). Cut where wider than `width`."""
        shown = text if width is None else shorten(text, width, size, bold)
        self._draw.text((x, y), shown, colour, font(size, bold), anchor)

    def picture(self, x: int, y: int, picture: Bytes | Image.Image) -> None:
        """A picture with its top left corner at x, y."""
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        self.image.paste(image, (x, y))

    def badge(self, x: int, y: int, text: str, size: int = 13) -> None:
        """A few words on a dark plate."""
        left, top, right, bottom = self._draw.textbbox((x + 4, y + 2), text, font(size, True))
        self._draw.rectangle((left - 4, top - 3, right + 3, bottom + 3), PAPER)
        self._draw.text((x + 4, y + 2), text, INK, font(size, True))

    def frame(self, x: int, y: int, width: int, height: int) -> None:
        """A white frame just outside a picture."""
        self._draw.rectangle((x - 3, y - 3, x + width + 2, y + height + 2), None, FRAME, 2)

    def legend(self, x: int, y: int, width: int, size: int = 13) -> None:
        """The bar of colours, with its ends named; 34 pixels high."""
        bar = heat(np.tile(np.linspace(0, 1, width, dtype=np.float32), (12, 1)))
        self.picture(x, y, bar)
        self.text(x, y + 18, "weak", size, colour=MUTED)
        self.text(x + width, y + 18, "strong", size, colour=MUTED, anchor="ra")
