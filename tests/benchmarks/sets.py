"""The two sets and the network on which methods are compared here."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "assets"
MODEL = ASSETS / "vit_tiny_patch16_224"
SETS: dict[str, tuple[str, int, int]] = {
    "caltech20": (str(ASSETS / "caltech20"), 5, 112),
    "digits": ("digits", 30, 96),
}
"""Name -> path, examples a class, side of the images in pixels."""
