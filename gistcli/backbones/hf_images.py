"""preprocessor_config.json of transformers in timm's terms, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gistcli.errors import WeightsError

FILE = "preprocessor_config.json"
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
CODES = {name: code for code, name in RESAMPLE.items()}


@dataclass(frozen=True)
class Images:
    """How pictures become pixels.

    Attributes:
        mean, std: per channel, of pixels in [0, 1].
        interpolation, crop_mode: timm's names; squash does not keep the aspect ratio.
        crop_pct: side of the crop over that of the resized picture.
        size: height and width of the crop; None where the network says.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_mode: str
    crop_pct: float = 1.0
    size: tuple[int, int] | None = None

    def at(self, size: tuple[int, int]) -> Images:
        """The same for images of another size.

        A crop that is not square is squashed: transformers resizes one side only, to a number.
        """
        mode = self.crop_mode if size[0] == size[1] else "squash"
        return replace(self, size=size, crop_mode=mode)

    def as_config(self, channels: int) -> dict[str, Any]:
        """timm's data config."""
        assert self.size is not None
        return {
            "input_size": (channels, *self.size),
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
        }


def read_images(folder: Path | None) -> Images | None:
    """What a model folder says about its pictures; None where it has no such file.

    Raises:
        WeightsError: the file cannot be read.
    """
    if folder is None or not (folder / FILE).is_file():
        return None
    from transformers import AutoImageProcessor

    try:
        # the library's own class knows the defaults and the forms of older files
        found = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        return _images(found)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise WeightsError(
            f"{folder / FILE} cannot be used: {error}.", "Copy it again, or remove it."
        ) from error


def _images(processor: Any) -> Images:
    resized = _sides(processor.size) if processor.do_resize else None
    crop = _sides(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    size = crop or resized
    keeps_ratio = bool(processor.do_resize and processor.size.get("shortest_edge"))
    if size is not None and crop is None and keeps_ratio:
        raise ValueError(f"pictures of size {dict(processor.size)} differ in shape")
    # pixels that are not scaled to [0, 1], or are so otherwise, change the meaning of the mean
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1.0)
    mean, std = processor.image_mean, processor.image_std
    if not processor.do_normalize:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return Images(
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
        interpolation=RESAMPLE[int(processor.resample)],
        crop_mode="center" if keeps_ratio else "squash",
        crop_pct=_fraction(crop[0], resized[0]) if crop and resized else 1.0,
        size=size,
    )


def _sides(size: Mapping[str, int]) -> tuple[int, int]:
    edge = size.get("shortest_edge")
    return (edge, edge) if edge else (size["height"], size["width"])


def _fraction(crop: int, resized: int) -> float:
    """A crop_pct from which timm, which rounds down, gets the same resized side again."""
    fraction = crop / resized
    return fraction if math.floor(crop / fraction) == resized else math.nextafter(fraction, 0)


def processor_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of preprocessor_config.json for a timm data config with center or squash."""
    height, width = (int(side) for side in config["input_size"][1:])
    resized = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    square = {"height": resized[0], "width": resized[1]}
    size = {"shortest_edge": resized[0]} if config["crop_mode"] == "center" else square
    return {
        # resize, crop, rescale, normalise: nothing in it belongs to one network
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": CODES[config["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config["mean"]),
        "image_std": list(config["std"]),
    }
