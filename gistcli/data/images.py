"""Decoding: any picture file to 8-bit RGB or grey, upright; and what tells a damaged one."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from gistcli.data.base import Blob, some
from gistcli.errors import DataError, NotFound, did_you_mean

EXTENSIONS = frozenset(
    f".{ending}"
    for ending in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "avif", "gif", "bmp", "dib"),
        *("tif", "tiff", "ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "tga"),
        *("heic", "heif"),
    )
)
"""File name endings that are taken for pictures when a folder is searched.

HEIC needs a plug-in of Pillow; without one such files are named as broken, not passed over.
"""

_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's word for a broken PNG
    EOFError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
    OverflowError,
    Image.DecompressionBombError,
)
"""What Pillow raises for damaged files."""


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF orientation."""


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings on odd metadata: a picture either decodes or is named as broken.

    For whoever starts the decoding threads, not for the threads: filters belong to the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.filterwarnings("ignore", module="gistcli.data.images")
        yield


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of a picture."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def read_image(
    source: Path | bytes | Blob, *, name: str | None = None, grey: bool = False, at_least: int = 0
) -> Image.Image:
    """The picture of a file, or of its bytes, as 8-bit RGB (or grey), upright.

    The EXIF orientation is applied. Transparent pixels lie over white. 16-bit values v become
    round(v / 257); floating-point ones may be in [0, 1] or [0, 255]. Of several frames or pages
    the first is taken.

    Args:
        source: a path, the encoded bytes, or what yields them.
        name: what errors call it; default the path.
        grey: one channel (mode L) instead of three.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while its shorter side keeps
            this many pixels; 0 decodes every pixel.

    Raises:
        DataError: the picture is damaged, truncated, empty, or none at all.
    """
    name = name or (str(source) if isinstance(source, Path) else "the picture")
    try:
        data = _bytes(source)
        with Image.open(io.BytesIO(data)) as image:
            if at_least:
                _draft(image, at_least)
            image.load()
            # by way of RGB even to grey: an unequal road would give unequal pixels
            rgb = _to_rgb(_upright(image))
            return rgb.convert("L") if grey else rgb
    except _BROKEN as error:
        raise DataError(f"{name}: {_reason(error)}") from error


def _bytes(source: Path | bytes | Blob) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        data = source.read_bytes() if isinstance(source, Path) else source.read()
    if not data:
        raise EOFError("empty")
    return data


def _draft(image: Image.Image, at_least: int) -> None:
    shorter = min(image.size)
    if image.format in ("JPEG", "MPO") and shorter > at_least:
        width, height = (max(1, side * at_least // shorter) for side in image.size)
        image.draft(None, (width, height))


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    except _BROKEN:
        turn = None  # a damaged tag does not spoil the pixels
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_bytes(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_bytes(image: Image.Image) -> Image.Image:
    """16-bit integers, or floating-point values, as 8-bit grey."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        unit = 255.0 if high <= 1 else 1.0
        if not (np.isfinite(values).all() and low >= 0 and high <= 255):
            raise ValueError(f"values from {low:g} to {high:g}: wanted 0 to 1 or 0 to 255")
        return Image.fromarray(np.rint(values * unit).astype(np.uint8))
    if low < 0 or high > 65535:
        raise ValueError(f"values from {low} to {high}: wanted 16 bits, 0 to 65535")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _reason(error: BaseException) -> str:
    """A few words for what ails a file."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "may not be read"
    if text == "empty":
        return "an empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known kind"
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated"
    return f"damaged ({text})"


def walk_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures below a folder and the other files, both sorted; hidden ones count as other.

    Linked folders are followed, each real folder once.
    """
    images: list[Path] = []
    others: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not ignored_folder(f))
        for name in files:
            visible = not name.startswith(".")
            (images if visible and is_image_name(name) else others).append(Path(place, name))
    return sorted(images), sorted(others)


def ignored_folder(name: str) -> bool:
    """Folders that other programs leave behind: hidden ones, `__MACOSX`, `__pycache__`."""
    return name.startswith(".") or (name.startswith("__") and len(name) > 2)


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, but for those that `ignored_folder` names."""
    with os.scandir(folder) as entries:  # tells folders from files without asking for each
        names = [e.name for e in entries if e.is_dir() and not ignored_folder(e.name)]
    return sorted(folder / name for name in names)


def expand_inputs(inputs: Sequence[Path]) -> list[Path]:
    """The picture files that files and folders (searched whole) name, each once, in order.

    A file that is named outright is taken whatever its ending.

    Raises:
        NotFound: an input does not exist; all of them in one message.
        DataError: a folder without pictures.
    """
    missing = [p for p in inputs if not p.exists()]
    if missing:
        near = missing[0].parent
        siblings = [str(near / n) for n in os.listdir(near)] if near.is_dir() else []
        hint = did_you_mean(str(missing[0]), siblings) if len(siblings) <= 30 else ""
        raise NotFound(f"{some(missing, 'input')} not found.", hint)
    files = list(dict.fromkeys(_files(inputs)))
    if not files:
        raise DataError(
            f"No picture in {', '.join(map(str, inputs))}.",
            f"Known endings: {' '.join(sorted(EXTENSIONS))}.",
        )
    return files


def _files(inputs: Sequence[Path]) -> Iterator[Path]:
    for path in inputs:
        if path.is_dir():
            yield from walk_images(path)[0]
        else:
            yield path
