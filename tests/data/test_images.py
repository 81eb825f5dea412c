"""Any picture file becomes the same upright 8-bit RGB, and damage is seen and named."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gistcli.data.images import EXTENSIONS, expand_inputs, quiet_pillow, read_image, walk_images
from gistcli.errors import DataError, NotFound

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def encoded(image: Image.Image, form: str, **keys: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **keys)
    return file.getvalue()


def test_grey_becomes_three_equal_channels() -> None:
    pixels = np.asarray(read_image(encoded(Image.fromarray(RAMP), "PNG")))
    assert (pixels == RAMP[..., None]).all()
    assert pixels.shape == (6, 8, 3)


def test_transparent_pixels_lie_over_white() -> None:
    values = np.zeros((2, 2, 4), np.uint8)
    values[0, 0] = (200, 0, 0, 255)
    values[0, 1] = (200, 0, 0, 0)
    values[1, 0] = (0, 0, 0, 51)  # a fifth of black over white: 204
    pixels = np.asarray(read_image(encoded(Image.fromarray(values), "PNG")))
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[0, 1].tolist() == [255, 255, 255]
    assert pixels[1, 0].tolist() == [204, 204, 204]


def test_grey_with_alpha_and_a_transparent_palette_entry_lie_over_white() -> None:
    both = Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")
    assert np.asarray(read_image(encoded(both, "PNG")))[0, :, 0].tolist() == [10, 255]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 8, 7, 6, 5, 4])
    pixels = np.asarray(read_image(encoded(palette, "PNG", transparency=1)))
    assert pixels[0].tolist() == [[9, 8, 7], [255, 255, 255]]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut_off(form: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535, 256]], np.uint16)
    pixels = np.asarray(read_image(encoded(Image.fromarray(values), form)))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255, 1]


def test_sixteen_bits_with_big_endian_and_32_bit_containers() -> None:
    values = np.array([[0, 257 * 7, 65535]], np.int32)
    assert np.asarray(read_image(encoded(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [
        0,
        7,
        255,
    ]
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert np.asarray(read_image(encoded(big, "TIFF")))[0, :, 0].tolist() == [0, 7, 255]


def test_floating_point_pixels_may_be_shares_or_bytes_but_nothing_else() -> None:
    shares = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.asarray(read_image(encoded(shares, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    values = Image.fromarray(np.array([[0.0, 99.6, 255.0]], np.float32))
    assert np.asarray(read_image(encoded(values, "TIFF")))[0, :, 0].tolist() == [0, 100, 255]
    wild = Image.fromarray(np.array([[-3.0, 99.6, 1e6]], np.float32))
    with pytest.raises(DataError, match="values from -3 to 1e\\+06"):
        read_image(encoded(wild, "TIFF"))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "1", "P", "LAB"])
def test_other_colour_models_come_near_the_original(mode: str) -> None:
    flat = Image.new("RGB", (16, 16), (255, 255, 255))
    form = {"CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF"}.get(mode, "PNG")
    pixels = np.asarray(read_image(encoded(flat.convert(mode), form)))
    assert pixels.shape == (16, 16, 3)
    assert pixels.min() >= 253


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x.swapaxes(0, 1), 2)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_the_orientation_tag_is_applied(
    orientation: int, upright: Callable[[np.ndarray], np.ndarray], form: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.stack([RAMP, RAMP, 255 - RAMP], axis=-1)
    pixels = np.asarray(read_image(encoded(Image.fromarray(stored), form, exif=exif)))
    assert (pixels == upright(stored)).all()


def test_the_orientation_tag_is_applied_to_grey_and_sixteen_bit_pictures_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    pixels = np.asarray(read_image(encoded(deep, "PNG", exif=exif), grey=True))
    assert (pixels == np.rot90(RAMP, -1)).all()


def test_a_damaged_tag_neither_spoils_the_pixels_nor_is_talked_about() -> None:
    data = encoded(Image.fromarray(RAMP), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    with quiet_pillow():
        assert (np.asarray(read_image(data))[..., 0] == RAMP).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0.95, 0.5])
@pytest.mark.parametrize("at_least", [0, 1])
def test_a_truncated_picture_is_refused(
    noise: Callable[..., Image.Image], form: str, kept: float, at_least: int
) -> None:
    data = encoded(noise(1, (200, 160)), form)
    assert read_image(data, at_least=at_least)
    with pytest.raises(DataError, match=r"^x: "):
        read_image(data[: int(len(data) * kept)], name="x", at_least=at_least)


def test_every_cut_of_a_real_photo_is_seen(assets: Path) -> None:
    data = (assets / "caltech20/test/dolphin/image_0002.jpg").read_bytes()
    for length in np.linspace(1, len(data) - 3, 40).astype(int):
        with pytest.raises(DataError):
            read_image(data[:length], at_least=1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"once upon a time", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_may_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: does not exist"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png: damaged"):
        read_image(tmp_path / "folder.png")


def test_a_jpeg_is_decoded_smaller_only_down_to_what_is_needed(
    noise: Callable[..., Image.Image],
) -> None:
    data = encoded(noise(1, (800, 600)), "JPEG")
    assert read_image(data).size == (800, 600)
    assert read_image(data, at_least=600).size == (800, 600)
    assert read_image(data, at_least=301).size == (800, 600)
    assert read_image(data, at_least=300).size == (400, 300)
    assert read_image(data, at_least=100).size == (200, 150)
    assert read_image(encoded(noise(1, (80, 60)), "PNG"), at_least=10).size == (80, 60)


def test_inputs_expand_to_sorted_files_each_once(
    class_folders: Callable[..., Path], tmp_path: Path
) -> None:
    root = class_folders(tmp_path / "in", b=2, a=1)
    (root / "a" / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    odd = root / "a" / "notes.txt"
    one = root / "b" / "b1.png"
    assert expand_inputs([one, root, odd]) == [one, root / "a/a0.png", root / "b/b0.png", odd]


def test_inputs_that_do_not_exist_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(NotFound, match=r"2 inputs .*phto\.png.*x\.png") as caught:
        expand_inputs([tmp_path / "phto.png", tmp_path / "x.png"])
    assert "photo.png" in caught.value.hint


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No picture in"):
        expand_inputs([tmp_path])


def test_links_in_circles_end(class_folders: Callable[..., Path], tmp_path: Path) -> None:
    root = class_folders(tmp_path / "in", a=1)
    (root / "a" / "again").symlink_to(root)
    images, _ = walk_images(root)
    assert [p.name for p in images] == ["a0.png"]
    assert ".png" in EXTENSIONS
